"""The weights of a Hugging Face model as our tree, apart from what the product imports with."""

import jax.numpy as jnp


def params_of_transformers(model, num_layers):
    """Transposes a tied Hugging Face Llama of the preset tiny's sizes into our tree, by hand."""
    state = {k: v.detach().numpy() for k, v in model.state_dict().items()}

    def stack(name, shape=None):
        layers = [state[f"model.layers.{i}.{name}.weight"].T for i in range(num_layers)]
        return jnp.stack([x if shape is None else x.reshape(shape) for x in layers])

    return {
        "embed": {"table": jnp.asarray(state["model.embed_tokens.weight"])},
        "layers": {
            "attn_norm": {"scale": stack("input_layernorm")},
            "attn": {
                "wq": stack("self_attn.q_proj", (64, 4, 16)),
                "wk": stack("self_attn.k_proj", (64, 2, 16)),
                "wv": stack("self_attn.v_proj", (64, 2, 16)),
                "wo": stack("self_attn.o_proj", (4, 16, 64)),
            },
            "mlp_norm": {"scale": stack("post_attention_layernorm")},
            "mlp": {
                "w_gate": stack("mlp.gate_proj"),
                "w_up": stack("mlp.up_proj"),
                "w_down": stack("mlp.down_proj"),
            },
        },
        "final_norm": {"scale": jnp.asarray(state["model.norm.weight"])},
    }
