"""Attacks: by gradients, by queries alone, on the smoothed vote, and all of them on one threat ladder."""
