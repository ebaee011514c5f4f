"""The networks that purifiers share, and how they are trained."""
