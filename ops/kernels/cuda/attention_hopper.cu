// Attention by products of warpgroups (compute capability 9.0 only: -arch=sm_90a), heads of up to 64 channels, without
// dropout. T is f16 or bf16.
#include "common.cuh"
#include "tensor_cores.cuh"
#include "warpgroup.cuh"
#include "attention.cuh"
#include "attention_tiles.cuh"
#include "attention_hopper_tiles.cuh"
#include "attention_hopper_forward.cuh"
#include "attention_hopper_backward.cuh"
