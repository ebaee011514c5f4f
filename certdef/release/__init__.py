"""Certificates where models are released: in the evaluation of a registered model."""
