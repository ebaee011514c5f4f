"""Distillation: a white-box student of what a black box answers."""
