"""The machine and the operating system: cores, memory, speed, signals, paths."""
