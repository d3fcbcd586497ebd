"""What the machine has: cores, memory, speed, signals."""
