"""Attacks: by gradients, by answers alone, on the smoothed vote, and all of them on one ladder."""
