"""What the benchmarks share: the model, the sweeps, who runs them and how."""
