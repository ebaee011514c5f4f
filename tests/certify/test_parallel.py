"""Many workers: the same certificates and byte-identical records, on real schedulers."""

import numpy as np
import pytest
import torch

import certify
from certify import CertifyError, RecordLog, SmoothedClassifier, nim_noise
from certify.voting.parallel import certify_parallel

OPTIONS = {"n": 400, "n0": 50}


@pytest.fixture
def smoothed():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 6 * 6, 4))
    return SmoothedClassifier(model, nim_noise(), 4, seed=3)


@pytest.fixture
def images():
    return torch.rand((7, 3, 6, 6), generator=torch.Generator().manual_seed(1))


def recorded(path, run):
    with RecordLog(path, {"seed": 3}) as log:
        certificates = run(lambda index, c, seconds: log.append(index, index % 4, c, seconds))
    return certificates, log.path.read_bytes()


class Bar:
    done = 0

    def update(self, amount):
        self.done += amount


@pytest.mark.parametrize("method", ["fixed", "sequential"])
def test_loky_gives_the_same_votes_and_records_whatever_the_workers(smoothed, images, tmp_path, method):
    options = {**OPTIONS, "method": method, "indices": range(20, 27)}
    expected = recorded(
        tmp_path / "one", lambda keep: smoothed.certify(images, on_certificate=keep, **options)
    )
    assert len({certificate.counts for certificate in expected[0]}) > 4
    for workers, shard in ((1, 7), (2, 2), (2, 1)):
        bar = Bar()
        found = recorded(
            tmp_path / f"{workers}-{shard}",
            lambda keep, workers=workers, shard=shard, bar=bar: certify_parallel(
                smoothed, images, workers=workers, shard=shard, on_certificate=keep, progress=bar, **options
            ),
        )
        assert found == expected
        assert bar.done == sum(c.n0 + c.n for c in expected[0])


@pytest.mark.slow
@pytest.mark.parametrize("backend", [pytest.param("dask", marks=pytest.mark.acceptance), "ray"])
def test_clusters_give_the_same_votes(smoothed, images, backend):
    pytest.importorskip("distributed" if backend == "dask" else "ray")
    found = certify_parallel(smoothed, images, backend=backend, workers=2, shard=2, **OPTIONS)
    assert found == smoothed.certify(images, **OPTIONS)


@pytest.mark.slow
@pytest.mark.acceptance
def test_a_running_dask_scheduler_is_used_and_left_running(smoothed, images):
    distributed = pytest.importorskip("distributed")
    cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
    try:
        address = cluster.scheduler_address
        found = certify_parallel(smoothed, images, backend="dask", scheduler=address, shard=2, **OPTIONS)
        assert found == smoothed.certify(images, **OPTIONS)
        with distributed.Client(address) as client:
            assert len(client.scheduler_info()["workers"]) == 2
    finally:
        cluster.close()


class Unanimous:
    """Anything that certifies can be spread over workers."""

    def certify(self, images, *, indices, on_certificate, n):
        draw = certify.certify_votes(lambda count: np.zeros(count, int), certify.Gaussian(1), 2, n=n)
        for index in indices:
            on_certificate(index, draw, 0.5)
        return [draw] * len(images)


def test_whatever_certifies_can_be_spread(images):
    found = certify_parallel(Unanimous(), images, workers=1, shard=3, n=400)
    assert [(each.prediction, each.n) for each in found] == [(0, 400)] * 7


def test_an_error_of_a_worker_names_its_cause(images):
    broken = SmoothedClassifier(_out_of_range, nim_noise(), 4)
    with pytest.raises(CertifyError, match="got 9"):
        certify_parallel(broken, images, shard=2, **OPTIONS)


def _out_of_range(x):
    return np.full(len(x), 9)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"backend": "mpi"}, "backend must be one of"),
        ({"scheduler": "tcp://here"}, "no scheduler"),
        ({"workers": 0}, "workers"),
        ({"shard": 0}, "shard"),
    ],
)
def test_bad_input(smoothed, images, options, word):
    with pytest.raises(CertifyError, match=word):
        certify_parallel(smoothed, images, **options)
