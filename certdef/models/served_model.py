"""The script that MLflow runs to load a model of ours: the code is in certdef.models.serving, the weights are safetensors."""

from certdef.models.serving import ServedModel, set_model

set_model(ServedModel())
