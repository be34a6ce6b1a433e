"""What all passes share: the pass itself, the types of nodes, constants, and what rewrites ask of a graph."""
