"""Vectors that change behaviour along one direction: data, losses and the training loop."""
