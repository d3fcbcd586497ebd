// Attention on tensor cores in TF32, heads of up to 64 channels, with dropout: the sizes. T is f32.
#include "common.cuh"
#include "tensor_cores.cuh"

const int HS = 64;                                                // columns of a tile
const bool DROPS = true;
const int M = 1;                                                  // forward: a warp owns 16 M queries
const int KEYS = 32;                                              // forward, dq: keys in a tile
const int QUERIES = 32;                                           // dk, dv: queries in a tile

#include "attention.cuh"
#include "attention_tf32.cuh"
#include "attention_forward.cuh"
#include "attention_backward.cuh"
