// Attention without tensor cores, heads of up to 256 channels.
#include "common.cuh"
#include "attention.cuh"

const int HS = 256;

#include "attention_plain.cuh"
