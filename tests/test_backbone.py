"""U-ViT: names of the public checkpoints, one prompt per sample, and a freeze that holds."""

import pytest
import torch
from torch import nn

from cdm_lightning.backbone import Backbone, UViT, freeze, tensors_sha256
from cdm_lightning.errors import BadInput
from cdm_lightning.guide_head import GuideHead
from cdm_lightning.uvit_layers import sinusoidal_embedding


def tiny(guided: bool = True, seed: int = 0) -> UViT:
    """Return a small network whose last layer is not zero."""
    backbone = UViT(image_size=8, channels=1, guided=guided, patch_size=4, width=16, depth=3, heads=2)
    generator = torch.Generator().manual_seed(seed)
    backbone.initialize(generator)
    nn.init.normal_(backbone.final_layer.weight, generator=generator)
    return backbone.eval()


def inputs(batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 1, 8, 8, generator=generator)
    return x, torch.rand(batch, generator=generator) * 1000, torch.randn(batch, 2, 8, 8, generator=generator)


def test_parameter_names_are_those_of_the_public_checkpoints() -> None:
    block = ("norm1.weight", "norm1.bias", "attn.qkv.weight", "attn.proj.weight", "attn.proj.bias")
    block += ("norm2.weight", "norm2.bias", "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias")
    expected = {"pos_embed", "norm.weight", "norm.bias"}
    expected |= {f"in_blocks.0.{name}" for name in block} | {f"mid_block.{name}" for name in block}
    expected |= {f"out_blocks.0.{name}" for name in (*block, "skip_linear.weight", "skip_linear.bias")}
    for layer in ("patch_embed.proj", "time_embed.0", "time_embed.2", "decoder_pred", "final_layer"):
        expected |= {f"{layer}.weight", f"{layer}.bias"}
    assert set(tiny(guided=False).state_dict()) == expected
    head = {
        f"guide_head.{layer}.{kind}" for layer in ("enter", "level", "middle", "leave") for kind in ("weight", "bias")
    }
    assert set(tiny(guided=True).state_dict()) == expected | head | {"guide_embed.proj.weight"}


def test_the_guide_is_a_second_input_to_the_patch_embedding() -> None:
    """Two embeddings that are summed equal one convolution over the concatenated channels."""
    backbone = tiny()
    x, _, guide = inputs(2)
    assert backbone.guide_embed is not None
    joined = nn.functional.conv2d(
        torch.cat([x, guide], dim=1),
        torch.cat([backbone.patch_embed.proj.weight, backbone.guide_embed.proj.weight], dim=1),
        backbone.patch_embed.proj.bias,
        stride=4,
    )
    summed = backbone.patch_embed(x) + backbone.guide_embed(guide)
    torch.testing.assert_close(summed, joined.flatten(2).mT, rtol=1e-5, atol=1e-6)


def test_the_head_works_pixel_by_pixel_with_a_reach_of_three() -> None:
    """A changed pixel reaches no farther than three 3x3 convolutions do, and the noise level changes what is done."""
    head = GuideHead(channels=1, width=16)
    generator = torch.Generator().manual_seed(5)
    head.initialize(generator)
    seen, embedding = torch.randn(1, 3, 16, 16, generator=generator), torch.randn(2, 1, 16, generator=generator)
    assert torch.equal(head(seen, embedding[0]), torch.zeros(1, 1, 16, 16)), "it starts at zero"
    for parameter in (head.leave.weight, head.level.weight):
        nn.init.normal_(parameter, generator=generator)
    changed = seen.clone()
    changed[0, 1, 8, 8] += 1
    rows = (head(changed, embedding[0]) - head(seen, embedding[0]))[0, 0].abs().amax(1).nonzero()[:, 0]
    assert (int(rows.min()), int(rows.max())) == (5, 11)
    assert not torch.allclose(head(seen, embedding[0]), head(seen, embedding[1]))


def test_the_head_works_in_pieces_where_nothing_is_trained() -> None:
    head, generator = GuideHead(channels=1, width=16), torch.Generator().manual_seed(6)
    head.initialize(generator)
    for parameter in (head.leave.weight, head.level.weight):
        nn.init.normal_(parameter, generator=generator)
    seen, embedding = torch.randn(11, 3, 16, 16, generator=generator), torch.randn(11, 16, generator=generator)
    with torch.no_grad():
        pieces = head(seen, embedding)
    assert torch.equal(pieces, head(seen, embedding))


def test_every_sample_sees_its_own_prompt() -> None:
    backbone = tiny()
    x, time, guide = inputs(4)
    prompts = torch.randn(4, 3, 2, 16, generator=torch.Generator().manual_seed(2))
    together = backbone(x, time, guide=guide, prompt=prompts)
    for k in range(4):
        one = slice(k, k + 1)
        alone = backbone(x[one], time[one], guide=guide[one], prompt=prompts[one])
        torch.testing.assert_close(together[one], alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together, backbone(x, time, guide=guide), atol=1e-3)


def test_a_prompt_that_all_rows_share_is_as_one_for_each() -> None:
    """Values and gradient are those of copies of it, which share nothing."""
    backbone, one = tiny(), torch.randn(3, 2, 16, generator=torch.Generator().manual_seed(2))
    x, time, guide = inputs(4)
    shared, copies = one.clone().requires_grad_(), one.repeat(4, 1, 1, 1).requires_grad_()
    found = backbone(x, time, guide=guide, prompt=shared.expand(4, -1, -1, -1))
    expected = backbone(x, time, guide=guide, prompt=copies)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(3))
    found.mul(weight).sum().backward()
    expected.mul(weight).sum().backward()
    assert copies.grad is not None
    torch.testing.assert_close(shared.grad, copies.grad.sum(0), rtol=1e-4, atol=1e-5)


def test_a_prompt_of_the_last_blocks_is_seen_by_them_alone() -> None:
    """As if the first block looked away, and nothing before the others has a gradient."""
    whole, x, time, guide = tiny(), *inputs(4)
    backbone = UViT(**whole.init_args | {"prompted": 2}).eval().requires_grad_(False)
    backbone.load_state_dict(whole.state_dict())
    assert backbone.prompt_shape == (2, 16)
    prompt = torch.randn(4, 3, 2, 16, generator=torch.Generator().manual_seed(2)).requires_grad_()
    entered: list[bool] = []
    backbone.mid_block.register_forward_pre_hook(lambda _, given: entered.append(given[0].requires_grad))
    backbone.mid_block.norm1.register_forward_pre_hook(lambda _, given: entered.append(given[0].requires_grad))
    found = backbone(x, time, guide=guide, prompt=prompt[:, 1:])
    first = whole.in_blocks[0]
    first.beside = lambda tokens, prompt: first(tokens)  # type: ignore[assignment]
    torch.testing.assert_close(found, whole(x, time, guide=guide, prompt=prompt), rtol=0, atol=0)
    assert entered == [False, True], "the image's tokens, then the prompt's"


def test_patches_come_back_where_they_were() -> None:
    """With an identity in the place of every learned map, the image comes back."""
    backbone = UViT(image_size=8, channels=1, guided=False, patch_size=4, width=16, depth=1, heads=2)
    for parameter in backbone.parameters():
        nn.init.zeros_(parameter)
    backbone.patch_embed.proj.weight.data.copy_(torch.eye(16).reshape(16, 1, 4, 4))
    backbone.decoder_pred.weight.data.copy_(torch.eye(16))
    backbone.final_layer.weight.data[0, 0, 1, 1] = 1.0
    backbone.norm = nn.Identity()  # type: ignore[assignment]
    x, time, _ = inputs(3)
    torch.testing.assert_close(backbone(x, time), x)


def test_a_fresh_network_is_zero_and_depends_on_its_generator_alone() -> None:
    fresh = UViT(image_size=8, channels=1, patch_size=4, width=16, depth=3, heads=2)
    fresh.initialize(torch.Generator().manual_seed(3))
    x, time, guide = inputs(2)
    assert torch.equal(fresh(x, time, guide=guide), torch.zeros(2, 1, 8, 8))
    torch.manual_seed(99)
    again = UViT(image_size=8, channels=1, patch_size=4, width=16, depth=3, heads=2)
    again.initialize(torch.Generator().manual_seed(3))
    assert tensors_sha256(again) == tensors_sha256(fresh)
    again.initialize(torch.Generator().manual_seed(4))
    assert tensors_sha256(again) != tensors_sha256(fresh)


def test_time_embedding_has_cosines_first_and_the_public_period() -> None:
    time, width = [0.0, 7.5], 6
    frequency = [1.0, 10000 ** (-1 / 3), 10000 ** (-2 / 3)]
    expected = [
        [torch.tensor(t * f).cos() for f in frequency] + [torch.tensor(t * f).sin() for f in frequency] for t in time
    ]
    torch.testing.assert_close(sinusoidal_embedding(torch.tensor(time), width), torch.tensor(expected))


def test_freezing_cannot_be_undone_by_train() -> None:
    backbone = tiny()
    freeze(backbone)
    holder = nn.Sequential(backbone)
    holder.train()
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


def test_batch_norm_is_refused() -> None:
    backbone = tiny()
    backbone.norm = nn.BatchNorm1d(5)  # type: ignore[assignment]
    with pytest.raises(BadInput, match="layer 'norm' is a BatchNorm, whose statistics mix the images"):
        freeze(backbone)


def test_the_hash_sees_the_last_bit_of_every_tensor() -> None:
    backbone = tiny()
    hashes = {tensors_sha256(backbone)}
    for tensor in backbone.state_dict().values():
        bits = tensor.view(-1)[-1:].view(torch.int32)
        bits ^= 1
        hashes.add(tensors_sha256(backbone))
    assert len(hashes) == len(backbone.state_dict()) + 1


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"patch_size": 3}, "patch_size is 3; expected a divisor of the image size 8"),
        ({"width": 18}, "width is 18; expected a multiple of 2"),
        ({"depth": 4}, "depth is 4; expected an odd number"),
        ({"classes": -1}, "classes is -1; expected at least 0"),
        ({"norm_epsilon": 0.0}, "norm_epsilon is 0.0; expected a number above 0"),
        ({"prompted": 0}, "prompted is 0; expected 1 to 3, as there are 3 blocks"),
        ({"prompted": 4}, "prompted is 4; expected 1 to 3"),
    ],
)
def test_sizes_that_do_not_fit_are_named(sizes: dict[str, float], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        UViT(**({"image_size": 8, "channels": 1, "patch_size": 4, "width": 16, "depth": 3, "heads": 2} | sizes))


VARIANT = {"time_mlp": False, "classes": 3, "final_convolution": False, "norm_epsilon": 1e-5}


def test_a_fresh_network_of_another_variant_is_zero_and_depends_on_its_generator_alone() -> None:
    """Without a convolution the last layer, which starts at 0, is the one over tokens."""
    hashes = []
    for seed in (3, 3, 4):
        fresh = UViT(image_size=8, channels=1, guided=False, patch_size=4, width=16, depth=3, heads=2, **VARIANT)  # type: ignore[arg-type]
        fresh.initialize(torch.Generator().manual_seed(seed))
        x, time, _ = inputs(2)
        assert torch.equal(fresh(x, time), torch.zeros(2, 1, 8, 8))
        hashes.append(tensors_sha256(fresh))
    assert hashes[0] == hashes[1] != hashes[2]


def test_arguments_at_their_defaults_are_not_noted() -> None:
    """So that a store from before they existed is the same store."""
    sizes = {"image_size": 8, "channels": 1, "guided": True, "patch_size": 4, "width": 16, "depth": 3, "heads": 2}
    assert tiny().init_args == sizes
    assert UViT(**(sizes | VARIANT)).init_args == sizes | VARIANT  # type: ignore[arg-type]


@pytest.mark.parametrize("variant", [{}, VARIANT, {"prompted": 2}])
def test_constructor_arguments_rebuild_the_network(variant: dict[str, float]) -> None:
    backbone: Backbone = UViT(**(tiny().init_args | variant))
    again = UViT(**backbone.init_args)
    again.load_state_dict(backbone.state_dict())
    assert tensors_sha256(again) == tensors_sha256(backbone)
    assert again.prompt_shape == backbone.prompt_shape
