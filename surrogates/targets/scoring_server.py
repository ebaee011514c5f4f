"""MLflow's scoring server (`mlflow models serve`, SageMaker, Databricks): POST .../invocations."""

import ast
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import numpy as np

from surrogates.errors import TargetError
from surrogates.targets.base import Target
from surrogates.targets.declared import Declared
from surrogates.targets.http import HttpClient, Reply, client_of
from surrogates.targets.json_answers import json_numbers, read_json
from surrogates.targets.records import Expected, unpack
from surrogates.targets.served import open_served
from surrogates.targets.signatures import ModelInput

# How MLflow refuses a table that lacks columns of the model's signature.
MISSING = re.compile(r"missing inputs (\[.*?\])\.(?:\s|$)", re.DOTALL)
LONGEST_REFUSAL = 2**20
JSON = {"Content-Type": "application/json"}


def ping(client: HttpClient) -> None:
    """Check that a scoring server is there.

    Raises:
        TargetError: It is not.
    """
    parts = urlsplit(client.url)
    client.reach(urlunsplit(parts._replace(path=f"{parts.path.rpartition('/')[0]}/ping", query="")))


def open_scoring_server(
    uri: str, declared: Declared, options: dict[str, Any], check: Callable[[HttpClient], None] = ping
) -> Target:
    """Open a model behind MLflow's scoring server; it reports nothing but that it is there, and the columns of a table.

    Args:
        check: What is looked at before, free of charge.
        options: Those of HTTP, `probe`, and `columns`: names of the columns of a model of tables, one a value of the image.
            Where layout is flat, the server is asked for them with an empty table.

    Raises:
        TargetError: The server cannot be reached, or the columns cannot be used.
    """
    client, rest = client_of(uri, options, ["probe", "columns"], "an MLflow scoring server")
    check(client)
    columns = rest.pop("columns", None)
    if columns is None and declared.layout in ("flat", "flat_hwc"):
        columns = columns_of(client)
    elif columns is not None:
        named = isinstance(columns, list | tuple) and all(isinstance(name, str) for name in columns)
        if not named or len(set(columns)) != len(columns) or not columns:
            raise TargetError(f"columns must list the names of columns, each once, got {columns!r}")
    features = None
    if columns is not None:
        features = len(columns)
        declared = ModelInput(f"model {client.url}", declared.dtype or "float32", (-1, features)).honored(
            declared
        )
    wire = ScoringServer(client.url, declared, None if columns is None else tuple(columns))
    return open_served(wire, client, declared, num_features=features, **rest)


def columns_of(client: HttpClient) -> list[str] | None:
    """Return the columns that a model of tables takes, None where it takes no table or does not name its columns.

    A table of no rows asks for no answer. A server that knows a signature of named columns refuses it and names them.
    """
    try:
        reply = client.ask(
            client.url, json.dumps({"dataframe_split": {"columns": [], "data": []}}).encode(), JSON
        )
        message = json.loads(reply.body[:LONGEST_REFUSAL])["message"]
        found = MISSING.search(message)
        columns = None if found is None else ast.literal_eval(found[1])
    except (TargetError, ValueError, KeyError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None
    return columns if columns and all(isinstance(name, str) for name in columns) else None


@dataclass(frozen=True)
class ScoringServer:
    """The protocol of MLflow 2 and 3: {"inputs": array} or a table in, {"predictions": array, records or columns} out.

    Args:
        url: Where batches are posted.
        declared: What the caller says of the answers.
        columns: The names of a table's columns; None for arrays.
    """

    url: str
    declared: Declared = field(default_factory=Declared)
    columns: tuple[str, ...] | None = None

    def encode(self, pixels: np.ndarray) -> tuple[bytes, dict[str, str]]:
        """Write a batch; Python's floats keep every bit of a float32."""
        if self.columns is None:
            return json.dumps({"inputs": pixels.tolist()}).encode(), JSON
        table = {"columns": self.columns, "data": pixels.tolist()}
        return json.dumps({"dataframe_split": table}).encode(), JSON

    def decode(self, reply: Reply, count: int) -> Any:
        """Read the predictions."""
        answer = read_json(reply)
        if not isinstance(answer, dict) or "predictions" not in answer:
            raise TargetError("target answered no 'predictions': is this an MLflow scoring server?")
        said = self.declared
        values = unpack(
            answer["predictions"],
            said.names,
            Expected(count, said.num_classes or 0, said.output_kind, said.output),
        )
        if isinstance(values, tuple):  # labels and scores of the best classes
            return values
        truths = isinstance(values, list) and {type(value) for value in values} == {bool}
        return values if isinstance(values, np.ndarray) or truths else json_numbers(values)
