"""How often a classifier answers each class under many noise draws."""
