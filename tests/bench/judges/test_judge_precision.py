import pytest
import torch

from bench.contracts.precision import full_precision

BACKENDS = torch.backends
FINE = [
    setting
    for group in (BACKENDS.cuda, BACKENDS.cudnn, BACKENDS.mkldnn)
    for name in ("matmul", "conv", "rnn")
    if hasattr(setting := getattr(group, name, None), "fp32_precision")
]
needs_fine = pytest.mark.skipif(not FINE, reason="torch before 2.9 has the coarse switches only")


def settings():
    return [setting.fp32_precision for setting in FINE]


@pytest.fixture(autouse=True)
def restored():
    before = settings()
    yield
    torch.set_float32_matmul_precision("highest")
    BACKENDS.cudnn.allow_tf32 = True
    for setting, value in zip(FINE, before, strict=True):
        setting.fp32_precision = value


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@pytest.mark.parametrize("tf32", [False, True])
def test_coarse_switches_are_off_inside_and_restored(precision, tf32):
    torch.set_float32_matmul_precision(precision)
    BACKENDS.cudnn.allow_tf32 = tf32
    before = settings()
    with full_precision():
        assert set(settings()) <= {"ieee"}
        assert torch.get_float32_matmul_precision() == "highest"
        assert BACKENDS.cudnn.allow_tf32 is False
    assert settings() == before
    assert torch.get_float32_matmul_precision() == precision
    assert BACKENDS.cudnn.allow_tf32 is tf32


@needs_fine
@pytest.mark.parametrize("value", ["tf32", "ieee"])
def test_fine_switches_are_off_inside_and_restored_even_after_an_error(value):
    for setting in FINE:
        setting.fp32_precision = value
    with pytest.raises(ZeroDivisionError), full_precision():
        assert set(settings()) == {"ieee"}
        raise ZeroDivisionError
    assert set(settings()) == {value}
