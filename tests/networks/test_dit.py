"""The diffusion transformer: official sizes, adaLN-Zero, and equality with an independent implementation."""

import pytest
import torch
from diffused import randomised

from gencli.core import Field
from gencli.errors import GencliError
from gencli.metrics._torchvision import import_torchvision
from gencli.networks.dit import DiT, smallest_patch, unpatchify

LABEL = Field("label", (), vocab=5)
TINY = {"patch": 2, "width": 16, "depth": 2, "heads": 2}


def image(side, channels=1):
    return Field("image", (channels, side, side), vocab=256, range=(-1.0, 1.0))


@pytest.mark.parametrize(
    ("width", "depth", "heads", "trained", "total"),
    [
        (384, 12, 6, 32_865_056, 32_963_360),
        (768, 12, 12, 130_315_808, 130_512_416),
        (1024, 24, 16, 457_840_672, 458_102_816),
        (1152, 28, 16, 674_834_720, 675_129_632),
    ],
    ids=["S/2", "B/2", "L/2", "XL/2"],
)
def test_parameter_counts_are_the_official_ones(width, depth, heads, trained, total):
    latents, classes = Field("latent", (4, 32, 32)), {"label": Field("label", (), vocab=1000)}
    with torch.device("meta"):
        net = DiT.make({"patch": 2, "width": width, "depth": depth, "heads": heads}, latents, 8, classes)
    count = sum(p.numel() for p in net.parameters())
    assert (count, count + net.positions.numel()) == (trained, total)
    assert "positions" not in net.state_dict()


def test_every_block_is_the_identity_and_the_output_zero_at_the_start():
    torch.manual_seed(0)
    net = DiT.make(TINY, image(8), 2, {"label": LABEL})
    h, c = torch.randn(3, 16, 16), torch.randn(3, 16)
    assert all(torch.equal(block(h, c), h) for block in net.blocks)
    out = net(torch.randn(3, 1, 8, 8), torch.tensor([0.0, 5.0, 999.0]), label=torch.tensor([0, 4, 5]))
    assert out.shape == (3, 2, 8, 8) and not out.any()
    out.sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_every_parameter_moves_the_output_once_gates_are_open():
    net = randomised(DiT.make(TINY, image(8), 1, {"label": LABEL}))
    net(
        torch.randn(3, 1, 8, 8), torch.tensor([0.0, 5.0, 999.0]), label=torch.tensor([0, 4, 5])
    ).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in net.parameters())


def test_unpatchify_undoes_patchify():
    x = torch.randn(2, 3, 8, 12)
    tokens = torch.stack(  # a token's pixels row by row, channel last, cut out one by one
        [x[:, :, r : r + 2, c : c + 2].permute(0, 2, 3, 1).flatten(1) for r in range(0, 8, 2) for c in range(0, 12, 2)],
        1,
    )
    assert torch.equal(unpatchify(tokens, 3, 4, 6), x)


@pytest.mark.parametrize(("side", "patch"), [(8, 1), (16, 2), (28, 4), (32, 4), (64, 8)])
def test_patch_0_takes_the_smallest_that_leaves_64_tokens(side, patch):
    assert smallest_patch(side, side) == patch
    assert DiT.make({**TINY, "patch": 0}, image(side), 1, {}).stride == patch


def test_sizes_that_no_patch_or_head_fits_are_refused():
    with pytest.raises(GencliError, match="29×29") as caught:
        DiT.make({**TINY, "patch": 0}, image(29), 1, {})
    assert "24 or 32" in caught.value.hint
    with pytest.raises(GencliError, match=r"9×9.*stride 2") as caught:
        DiT.make(TINY, image(9), 1, {})
    assert "8 or 10" in caught.value.hint
    with pytest.raises(GencliError, match=r"width 16.*3 heads"):
        DiT.make({**TINY, "heads": 3}, image(8), 1, {})


def test_an_item_does_not_depend_on_its_batch_mates():
    net = randomised(DiT.make(TINY, image(8), 1, {"label": LABEL}))
    x, level, label = torch.randn(7, 1, 8, 8), torch.arange(7) * 100.0, torch.arange(7) % 6
    whole = net(x, level, label=label)
    alone = torch.cat([net(x[i : i + 1], level[i : i + 1], label=label[i : i + 1]) for i in range(7)])
    assert (whole - alone).abs().max() < 1e-5


def test_residuals_reach_the_output_after_their_block():
    net = randomised(DiT.make(TINY, image(8), 1, {}))
    x, level = torch.randn(2, 1, 8, 8), torch.zeros(2)
    assert torch.equal(net(x, level, residuals=[torch.zeros(2, 16, 16)]), net(x, level))
    assert not torch.allclose(net(x, level, residuals=[torch.randn(2, 16, 16)]), net(x, level), atol=1e-3)


def test_outputs_equal_diffusers_with_copied_weights():
    """diffusers repeats the level and class embedding in every block and spaces its frequencies differently: both undone."""
    pytest.importorskip("diffusers")
    import_torchvision()  # which diffusers imports too
    import diffusers
    from diffusers.models.embeddings import Timesteps

    ours = randomised(DiT.make({"patch": 2, "width": 32, "depth": 2, "heads": 4}, image(8, 3), 6, {"label": LABEL}))
    theirs = diffusers.DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=3,
        out_channels=6,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=5,
        norm_num_groups=1,
        norm_eps=1e-6,
    ).eval()
    mine = ours.state_dict()
    copied = {}
    for kind in ("weight", "bias"):
        copied[f"pos_embed.proj.{kind}"] = mine[f"patches.{kind}"]
        copied[f"proj_out_1.{kind}"], copied[f"proj_out_2.{kind}"] = mine[f"modulation.{kind}"], mine[f"last.{kind}"]
        for i in range(2):
            here, there = f"blocks.{i}", f"transformer_blocks.{i}"
            for k, letter in enumerate("qkv"):
                copied[f"{there}.attn1.to_{letter}.{kind}"] = mine[f"{here}.qkv.{kind}"].chunk(3)[k]
            copied[f"{there}.attn1.to_out.0.{kind}"] = mine[f"{here}.proj.{kind}"]
            copied[f"{there}.ff.net.0.proj.{kind}"] = mine[f"{here}.up.{kind}"]
            copied[f"{there}.ff.net.2.{kind}"] = mine[f"{here}.down.{kind}"]
            copied[f"{there}.norm1.linear.{kind}"] = mine[f"{here}.modulation.{kind}"]
            copied[f"{there}.norm1.emb.timestep_embedder.linear_1.{kind}"] = mine[f"time.0.{kind}"]
            copied[f"{there}.norm1.emb.timestep_embedder.linear_2.{kind}"] = mine[f"time.2.{kind}"]
            copied[f"{there}.norm1.emb.class_embedder.embedding_table.weight"] = mine["label.weight"]
    missing, unexpected = theirs.load_state_dict(copied, strict=False)
    assert not unexpected and missing in ([], ["pos_embed.pos_embed"])
    for block in theirs.transformer_blocks:
        block.norm1.emb.time_proj = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)
    x, level, label = torch.randn(4, 3, 8, 8), torch.tensor([0, 3, 500, 999]), torch.tensor([0, 4, 5, 2])
    with torch.no_grad():
        a, b = ours(x, level, label=label), theirs(x, level, class_labels=label).sample
    assert b.std() > 0.1
    assert (a - b).abs().max() < 1e-5 * max(1.0, float(b.abs().max()))
