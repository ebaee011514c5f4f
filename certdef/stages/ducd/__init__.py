"""The stages of the DUCD job."""
