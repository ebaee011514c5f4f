"""A custom MLServer runtime (a plain linear classifier); it runs in MLServer's own environment."""

import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from mlserver.utils import get_model_uri


class Linear(MLModel):
    async def load(self) -> bool:
        with np.load(await get_model_uri(self._settings)) as file:
            self._weight, self._bias = file["weight"], file["bias"]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        images = self.decode(payload.inputs[0], default_codec=NumpyCodec)
        scale = 255 if images.dtype == np.uint8 else 1
        rows = images.reshape(len(images), -1).astype(np.float64) / scale
        logits = rows @ self._weight.T + self._bias
        outputs = {"logits": logits.astype(np.float32), "labels": logits.argmax(axis=1)}
        wanted = [output.name for output in payload.outputs or []] or list(outputs)
        return InferenceResponse(
            model_name=self.name,
            outputs=[NumpyCodec.encode_output(name, outputs[name]) for name in wanted],
        )
