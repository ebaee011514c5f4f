"""The stages of the UDC job: a restoration under a display, attacked, purified and fine-tuned."""
