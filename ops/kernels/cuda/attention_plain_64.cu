// Attention without tensor cores, heads of up to 64 channels.
#include "common.cuh"
#include "attention.cuh"

const int HS = 64;

#include "attention_plain.cuh"
