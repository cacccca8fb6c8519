"""Files made of proteins, in constant memory, by all processes, resumed when interrupted."""
