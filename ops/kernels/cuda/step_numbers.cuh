// The places in the array of a step's numbers: tinygrad2/gpu/step_numbers.py.

enum { RATE, COUNT, SCALE, GOOD, IN_A_ROW, SKIPPED, STOPPED, FACTOR };
