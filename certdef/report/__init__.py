"""Results as a person reads them: pages, figures, the terminal's tables."""
