"""A small job whose target, a linear network in an ONNX file, was trained on a list of images until it knew them by heart."""

from pathlib import Path

import numpy as np

LISTS = ["--membership.members=members.npz", "--membership.nonmembers=others.npz"]
LISTED = 100


def write_job(folder: Path) -> list[str]:
    """Write the target, its data, a table of groups and both lists; returns the options of the job."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    data = load_digits()
    images = (data.images / 16).astype(np.float32)[:, None]
    labels = data.target.copy()
    random = np.random.default_rng(0)
    order = random.permutation(len(images))
    members, others, heldout = order[:LISTED], order[LISTED : 2 * LISTED], order[1000:1040]
    for listed in (
        members,
        others,
    ):  # three in ten labels are drawn, in both lists alike: these can only be learned by heart
        wrong = random.random(LISTED) < 0.3
        labels[listed[wrong]] = random.integers(10, size=wrong.sum())
    seen = (images * 20)[members].reshape(LISTED, -1)
    model = LogisticRegression(C=1e6, max_iter=3000).fit(seen, labels[members])
    weights = np.zeros((64, 10), np.float32)
    weights[:, model.classes_] = 20 * model.coef_.T
    write_linear(folder / "model.onnx", weights)
    names = np.array([*"0123456789"])
    for name, chosen in (("members", members), ("others", others), ("images", heldout)):
        right = labels if name != "images" else data.target
        np.savez(folder / f"{name}.npz", images=images[chosen], labels=right[chosen], class_names=names)
    rows = "\n".join(f"{'left' if at % 2 else 'right'}" for at in range(len(heldout)))
    (folder / "groups.csv").write_text(f"camera\n{rows}\n")
    return [
        "--target.uri=model.onnx",
        "--target.output_kind=logits",
        "--data.path=images.npz",
        "--purifier=none",
        "--certify.target_images=12",
        "--certify.n=150",
        "--certify.n0=30",
        "--tracking.system_metrics=false",
        "--work-dir=work",
    ]


def write_linear(path: Path, weights: np.ndarray) -> None:
    """An ONNX file that multiplies pixels (N, 1, 8, 8) with weights (64, 10)."""
    import onnx
    from onnx import TensorProto, helper

    nodes = [helper.make_node("Flatten", ["x"], ["rows"]), helper.make_node("MatMul", ["rows", "w"], ["y"])]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 8, 8])
    answer = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])
    held = [helper.make_tensor("w", TensorProto.FLOAT, weights.shape, weights.ravel())]
    graph = helper.make_graph(nodes, "linear", [given], [answer], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path)
