"""The synthetic MDP of the first figure of AEnt's paper (arXiv 2509.03493), as far as it is published."""
