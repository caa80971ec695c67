"""Alphas by depth and part: what each parameter gets, and what is refused."""

import numpy as np
import pytest

from ellama_jax.weights.alphas import Alphas, alphas_from_dict, parse_alphas_by_part


def test_one_number_is_every_parameters():
    alphas = parse_alphas_by_part("0.3")
    assert alphas.uniform == 0.3
    assert alphas.of("embed/table", 4) == 0.3
    np.testing.assert_array_equal(alphas.of("layers/mlp/w_up", 4), [0.3] * 4)


def test_a_gradient_runs_from_the_embedding_to_the_head():
    alphas = parse_alphas_by_part("0,1,0.5")
    np.testing.assert_allclose(alphas.of("layers/attn/wq", 5), [0, 0.5, 1, 0.75, 0.5])
    assert alphas.of("embed/table", 5) == 0.0
    assert alphas.of("final_norm/scale", 5) == alphas.of("lm_head/kernel", 5) == 0.5
    assert alphas.uniform is None


def test_a_model_of_one_layer_takes_a_gradients_first_value():
    assert parse_alphas_by_part("0.25,1").of("layers/attn/wq", 1).tolist() == [0.25]


def test_the_later_part_wins():
    alphas = parse_alphas_by_part("1", ["attn=0.5", "wq=0.25", "layers.1-2=0", "norms=0.75"])
    assert alphas.of("layers/attn/wq", 4).tolist() == [0.25, 0, 0, 0.25]
    assert alphas.of("layers/attn/wo", 4).tolist() == [0.5, 0, 0, 0.5]
    assert alphas.of("layers/mlp/w_up", 4).tolist() == [1, 0, 0, 1]
    assert alphas.of("layers/attn_norm/scale", 4).tolist() == [0.75] * 4
    assert alphas.of("final_norm/scale", 4) == 0.75
    assert alphas.of("embed/table", 4) == 1.0


def test_a_gradient_of_some_layers_is_spread_over_them():
    alphas = parse_alphas_by_part("0", ["layers.1-3=0,1"])
    assert alphas.of("layers/attn/wq", 5).tolist() == [0, 0, 0.5, 1, 0]


def test_a_part_that_names_the_embedding_alone_leaves_the_rest():
    alphas = parse_alphas_by_part("0.5", ["embed=0", "head=1"])
    assert (alphas.of("embed/table", 2), alphas.of("lm_head/kernel", 2)) == (0.0, 1.0)
    assert alphas.of("final_norm/scale", 2) == 0.5


def test_the_plain_form_reads_back():
    alphas = parse_alphas_by_part("0,1", ["embed=0", "layers.0-1=0.5,1"])
    assert alphas_from_dict(alphas.to_dict()) == alphas


@pytest.mark.parametrize(
    ("depth", "parts", "message"),
    [
        ("a", [], "--alpha: must be numbers and commas, got 'a'"),
        ("", [], "--alpha: must be numbers and commas, got ''"),
        ("1", ["embed"], "--alpha-of: must be PART=ALPHA, as embed=0, got embed"),
        ("1", ["embd=0"], "got embd; did you mean embed"),
        ("1", ["layers=0"], "layers.I or layers.I-J, got layers;"),
        ("1", ["embed="], "--alpha-of: must be numbers and commas, got ''"),
    ],
)
def test_text_that_says_no_alpha_is_refused(depth, parts, message):
    with pytest.raises(ValueError, match=message):
        parse_alphas_by_part(depth, parts)


@pytest.mark.parametrize(
    ("alphas", "message"),
    [
        (Alphas((1.5,)), r"alpha: must be from 0 \(base\) to 1 \(adapted\), got 1.5"),
        (Alphas((1.0,), (("embed", (-0.1,)),)), "alpha of embed: must be from 0"),
        (Alphas((float("nan"),)), "alpha: must be a finite number, got nan"),
        (Alphas((1.0,), (("layers.2-4", (0.0,)),)), "must be layers 0 to 3 of this model"),
        (Alphas((1.0,), (("layers.2-1", (0.0,)),)), "in order, got 2 to 1"),
    ],
)
def test_what_fits_no_model_is_refused(alphas, message):
    with pytest.raises(ValueError, match=message):
        alphas.check(4)


def test_beyond_both_models_only_when_asked():
    Alphas((1.5,)).check(4, extrapolate=True)
    with pytest.raises(ValueError, match="finite"):
        Alphas((float("inf"),)).check(4, extrapolate=True)
