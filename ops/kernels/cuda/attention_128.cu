// Attention on tensor cores, heads of up to 128 channels, without dropout: the sizes. T is f16 or bf16.
#include "common.cuh"
#include "tensor_cores.cuh"

const int HS = 128;                                               // columns of a tile
const bool DROPS = false;
const int M = 1;                                                  // forward: a warp owns 16 M queries
const int KEYS = 32;                                              // forward, dq: keys in a tile
const int QUERIES = 32;                                           // dk, dv: queries in a tile

#include "attention.cuh"
#include "attention_tiles.cuh"
#include "attention_forward.cuh"
#include "attention_backward.cuh"
