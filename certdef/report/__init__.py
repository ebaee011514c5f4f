"""What a person sees: pages, figures, the terminal's tables."""
