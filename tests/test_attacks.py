import numpy as np
import torch

from certdef import attacks
from certdef.config import DataConfig
from certdef.data import load_data
from certdef.models import build_classifier, train_classifier


def test_pgd_stays_within_eps_breaks_the_model_and_leaves_the_global_generator_alone():
    data = load_data(DataConfig(), 0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_classifier("mlp", data.image_shape, 10)
    train_classifier(
        model, data.target_images, data.target_labels, epochs=15, seed=0, device=torch.device("cpu")
    )
    images, labels = torch.from_numpy(data.heldout_images[:100]), torch.from_numpy(data.heldout_labels[:100])
    state = torch.random.get_rng_state()
    found = {eps: attacks.pgd(model, images, labels, eps=eps, steps=10, seed=1) for eps in (0.05, 0.3)}
    assert torch.equal(state, torch.random.get_rng_state())

    def right(shown):
        with torch.inference_mode():
            return float((model(shown).argmax(1) == labels).float().mean())

    assert right(images) > 0.9
    assert right(found[0.3]) < 0.2
    assert right(found[0.3]) < right(found[0.05]) < right(images)
    for eps, adversarial in found.items():
        assert (adversarial - images).abs().max() <= eps + 1e-6
        assert adversarial.min() >= 0
        assert adversarial.max() <= 1
    again = attacks.pgd(model, images, labels, eps=0.05, steps=10, seed=1)
    assert np.array_equal(again, found[0.05])
