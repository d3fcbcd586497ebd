"""What a GPU needs besides kernels: its memory, copies to it, graphs of work, numbers that it reads itself."""
