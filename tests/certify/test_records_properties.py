"""Properties of the record reader: what is written is read, and nothing else is ever taken for a certificate."""

import json
import math
import warnings

import numpy as np
import pytest
import scipy.stats
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import certify
from certify import (
    ABSTAIN,
    CertifyError,
    Gaussian,
    RecordLog,
    binomial_lower_bound,
    certify_votes,
    read_records,
)

NOISE = Gaussian(0.25)
FEW = settings(
    derandomize=True,
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
MANY = settings(FEW, max_examples=1000)
BOTH = pytest.mark.parametrize(
    "examples", [pytest.param(FEW, id="few"), pytest.param(MANY, id="many", marks=pytest.mark.slow)]
)


def check(examples, strategies, property_):
    """Run a property with as many examples as the parameter says."""
    examples(given(**strategies)(property_))()


CERTIFICATES = st.lists(
    st.tuples(
        st.integers(0, 10**6),
        st.integers(-1, 2),
        st.floats(0, 1),
        st.sampled_from(["fixed", "two_sided", "sequential", "group_sequential"]),
        st.sampled_from([0.001, 0.05]),
    ),
    max_size=5,
    unique_by=lambda each: each[0],
)


def write(stem, images, config):
    stem.with_name(stem.name + ".jsonl").unlink(missing_ok=True)
    stem.with_name(stem.name + ".tsv").unlink(missing_ok=True)
    made = []
    with RecordLog(stem, config) as log:
        for index, label, share, method, alpha in images:

            def draw(count, share=share):
                return np.repeat([0, 1], [math.floor(share * count), count - math.floor(share * count)])

            found = certify_votes(draw, NOISE, 3, n0=20, n=640, alpha=alpha, method=method)
            log.append(index, label, found, 1.5)
            made.append(found)
    return log.path, made


@BOTH
def test_what_is_written_is_read(tmp_path, examples):
    def round_trip(images, named):
        path, made = write(tmp_path / "run", images, {"noise": NOISE.describe()} if named else {})
        records, field = read_records(path), read_records(path.with_suffix(".tsv"))
        assert records.idx.tolist() == field.idx.tolist() == [each[0] for each in images]
        assert records.radius.tolist() == [each.radius for each in made]
        assert records.predict.tolist() == field.predict.tolist() == [each.prediction for each in made]
        assert records.alpha.tolist() == [each.alpha for each in made]
        assert records.n0.tolist() == [each.n0 for each in made]
        assert [tuple(row) for row in records.counts.tolist()] == [each.counts for each in made]
        right = (records.predict == records.label) & (records.predict != ABSTAIN)
        assert np.array_equal(records.correct, right)
        assert np.array_equal(field.correct, right)
        assert np.all(field.radius <= records.radius)

    check(examples, {"images": CERTIFICATES, "named": st.booleans()}, round_trip)


LAWS = [
    *(NOISE, certify.Laplace(0.2), certify.Uniform(0.5), certify.UniformLinf(0.5, 48), certify.nim_noise()),
    *(certify.Inclusion(law, "linf", 48) for law in (NOISE, certify.Laplace(0.2), certify.nim_noise())),
    certify.GaussianScaleMixture(scipy.stats.rv_discrete(values=([0.1, 0.25, 0.5], [0.2, 0.5, 0.3]))),
    certify.GaussianScaleMixture(scipy.stats.lognorm(0.8, scale=0.2)),
    certify.GaussianScaleMixture(certify.truncated(scipy.stats.gamma(4, scale=8 / 255), 0.05, 0.2)),
]


@BOTH
def test_no_certificate_of_this_package_is_refused(tmp_path, examples):
    """Whatever the law, the method, the votes and the number of classes: 2, or so many that rivals are pooled."""

    def recorded(law, method, classes, share, seed, alpha):
        method = "fixed" if method == "two_sided" and not law.is_two_sided else method
        rng = np.random.default_rng(seed)
        shares = np.append(share, np.full(classes - 1, (1 - share) / (classes - 1)))
        stopping = "sequential" in method
        radii = law.radius([0.51, 0.6, 0.8]).tolist() if stopping else None

        def draw(count):
            return rng.choice(classes, size=count, p=shares)

        found = certify_votes(draw, law, classes, n0=20, n=2000, alpha=alpha, method=method, radii=radii)
        for end in (".jsonl", ".tsv"):
            (tmp_path / f"run{end}").unlink(missing_ok=True)
        with RecordLog(tmp_path / "run", {}) as log:
            log.append(0, 0, found, 0.0)
        assert read_records(log.path).radius.tolist() == [found.radius]

    strategies = {
        "law": st.sampled_from(LAWS),
        "method": st.sampled_from(["fixed", "two_sided", "sequential", "group_sequential"]),
        "classes": st.sampled_from([2, 3, 30]),
        "share": st.one_of(st.floats(0.1, 1), st.floats(0.5, 0.55), st.floats(0.99, 1)),
        "seed": st.integers(0, 2**32 - 1),
        "alpha": st.sampled_from([1e-6, 0.001, 0.05]),
    }
    check(examples, strategies, recorded)


# --- records of version 0.1.0, which have no checksum: the votes themselves are the check ----------------------------

ROWS = [
    {
        **{
            "idx": index,
            "label": 0,
            "predict": 0 if p > 0.5 else -1,
            "radius": NOISE.radius(p),
            "p_lower": p,
        },
        **{"counts": [votes, 1000 - votes], "n0": 100, "n": 1000, "alpha": 0.001, "method": "fixed"},
        **{"sound": True, "selected": 0, "correct": int(p > 0.5)},
    }
    for index, votes in enumerate([990, 700, 500])
    for p in [binomial_lower_bound(votes, 1000, 0.001)]
]
HEADER = json.dumps({"config": {"noise": NOISE.describe()}, "format": "certify-records-1"})
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.sampled_from(
        [0, 1, -1, 0.5, 1e-300, 1e300, 999, 1000, 1001, "", "0", "fixed", "two_sided", "sequential"]
    ),
    st.lists(st.one_of(st.integers(-5, 2000), st.floats(0, 2000), st.booleans()), max_size=4),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


def nearby(value, step):
    """Another value that could be, as far as its kind is concerned; counts keep their sum."""
    if isinstance(value, list):
        return [value[0] + step, value[1] - step]
    if isinstance(value, bool | str):
        return value
    return value + step if isinstance(value, int) else value * (1 + step / 10)


def assert_sound(records):
    """No radius is longer than the votes prove; read from the columns alone."""
    assert len(set(records.idx.tolist())) == len(records)
    assert np.all(np.isfinite(records.radius) & (records.radius >= 0))
    assert np.all(records.radius[records.predict == ABSTAIN] == 0)
    assert np.array_equal(records.correct, (records.predict == records.label) & (records.predict != ABSTAIN))
    if records.counts is None:
        return
    assert np.all(records.predict < records.counts.shape[1])
    for row in np.flatnonzero(records.predict != ABSTAIN):
        votes = records.counts[row]
        bound = binomial_lower_bound(votes[records.predict[row]], votes.sum(), records.alpha[row])
        assert records.radius[row] <= NOISE.radius(bound) * (1 + 1e-9)


def read_or_refuse(path):
    """The records, or None where they are refused in one line; any other exception fails."""
    try:
        return read_records(path)
    except CertifyError as error:
        fault = str(error)
    assert "\n" not in fault
    return None


@BOTH
def test_no_changed_value_makes_a_certificate(tmp_path, examples):
    """Of methods whose bounds depend on the votes between, the bound itself is believed: they are left out."""
    path = tmp_path / "old.jsonl"

    def changed(row, name, value, step):
        rows = [dict(each) for each in ROWS]
        value = value if step is None else nearby(rows[row][name], step)
        if name == "method" and value != "fixed":
            value = "two_sided"
        rows[row][name] = value
        path.write_text("\n".join([HEADER, *map(json.dumps, rows)]) + "\n")
        found = read_or_refuse(path)
        if found is not None:
            assert_sound(found)

    strategies = {
        "row": st.integers(0, 2),
        "name": st.sampled_from([*ROWS[0], *4 * ["radius", "p_lower", "counts", "alpha"]]),
        "value": VALUES,
        "step": st.one_of(st.none(), st.integers(-9, 9)),
    }
    check(examples, strategies, changed)


NUMBERS = st.one_of(
    st.sampled_from([0, -1, 1, 25, 0.25, 1e-300, 1e-12, 1e12, 1e300, 10**400, True, None, "1", [1.0]]),
    st.floats(),
)


@BOTH
def test_no_law_that_a_file_names_is_more_than_one_line(tmp_path, examples):
    path = tmp_path / "old.jsonl"

    def named(noise):
        header = {"config": {"noise": noise}, "format": "certify-records-1"}
        path.write_text("\n".join(map(json.dumps, [header, *ROWS])) + "\n")
        with warnings.catch_warnings(action="ignore"):  # of numbers that overflow
            read_or_refuse(path)

    families = st.sampled_from(
        ["gamma", "expon", "uniform", "loguniform", "triang", "levy_stable", "rv", "", None]
    )
    law = {
        "law": st.sampled_from(
            ["gaussian", "laplace", "uniform", "gaussian_scale_mixture", "splitting", "mine", 3]
        ),
        "norm": st.sampled_from(["l1", "l2", "linf", None]),
    }
    rest = {
        **dict.fromkeys(("scale", "half_width", "dimensions", "levels"), NUMBERS),
        "sigma": st.one_of(NUMBERS, families),
        "args": st.one_of(st.lists(NUMBERS, max_size=3), NUMBERS),
        "kwds": st.one_of(st.dictionaries(st.sampled_from(["scale", "loc", "a"]), NUMBERS), NUMBERS),
        "atoms": st.lists(NUMBERS, max_size=3),
        "probabilities": st.sampled_from([[1.0], [0.5, 0.5], [0.2, 0.3, 0.5]]),
        "radius": st.sampled_from(["by inclusion from l2", "by inclusion from l1", "approximate", 5]),
    }
    check(examples, {"noise": st.fixed_dictionaries(law, optional=rest)}, named)


@BOTH
def test_no_damage_to_a_file_is_more_than_one_line(tmp_path, examples):
    """Bytes are flipped, cut out and put in, anywhere in either format, with checksums and without."""
    path, _ = write(tmp_path / "run", [(0, 0, 0.9, "fixed", 0.001), (7, 0, 0.2, "fixed", 0.001)], {})
    old = "\n".join([HEADER, *map(json.dumps, ROWS)]) + "\n"
    files = [path.read_bytes(), old.encode(), path.with_suffix(".tsv").read_bytes()]
    certificates = [{(row.radius, row.predict) for row in rows_of(path)}, None, None]

    def damaged(which, at, length, inserted):
        data = files[which]
        start = int(at * len(data))
        other = tmp_path / "damaged"
        other.write_bytes(data[:start] + inserted + data[start + length :])
        found = read_or_refuse(other)
        if found is not None and certificates[which] is not None:
            assert {(row.radius, row.predict) for row in rows_of(other)} <= certificates[which]

    strategies = {
        "which": st.integers(0, 2),
        "at": st.floats(0, 1),
        "length": st.integers(0, 40),
        "inserted": st.one_of(
            st.binary(max_size=20), st.sampled_from([b"\n", b"\x00", b"}", b"\t", b"9", b"-"])
        ),
    }
    check(examples, strategies, damaged)


def rows_of(path):
    records = read_records(path)
    return np.rec.fromarrays([records.radius, records.predict], names="radius,predict")


FIELDS = st.one_of(
    st.sampled_from(
        ["0", "1", "-1", "3", "0.5", "nan", "inf", "True", "False", "1 day, 2:03:04", "0:00:01", "1e999", ""]
    ),
    st.integers().map(str),
    st.floats().map(str),
    st.text(max_size=5),
)


@BOTH
def test_a_log_of_the_field_is_read_or_refused(tmp_path, examples):
    path = tmp_path / "log"

    def read(lines, ending):
        head = "idx\tlabel\tpredict\tradius\tcorrect\ttime"
        path.write_bytes(
            ending.join([head, *map("\t".join, lines)]).encode(errors="replace") + ending.encode()
        )
        found = read_or_refuse(path)
        if found is not None:
            assert_sound(found)
            assert np.all((found.seconds >= 0) | np.isnan(found.seconds))

    strategies = {
        "lines": st.lists(st.lists(FIELDS, min_size=5, max_size=7), max_size=3),
        "ending": st.sampled_from(["\n", "\r\n"]),
    }
    check(examples, strategies, read)


@BOTH
def test_no_other_file_raises_anything_else(tmp_path, examples):
    path = tmp_path / "file"
    starts = [b"", b"{", HEADER.encode() + b"\n", b"idx\tlabel\tpredict\tradius\tcorrect\n", b"\xef\xbb\xbf{"]

    def read(start, rest):
        path.write_bytes(start + rest)
        found = read_or_refuse(path)
        if found is not None:
            assert_sound(found)

    check(examples, {"start": st.sampled_from(starts), "rest": st.binary(max_size=200)}, read)
