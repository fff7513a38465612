"""The network leaves for ONNX with standard operators and a free batch size."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from mask2former_mcp.engine.model.network import build
from mask2former_mcp.spec.experiment import load


class Semantic(nn.Module):
    """Class scores of every pixel: the product of class and mask probabilities, as a batched matrix product."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        prediction = self.network(images)
        classes = prediction.class_logits[-1].softmax(-1)[..., 1:]
        masks = prediction.mask_logits().sigmoid()
        return torch.bmm(classes.transpose(1, 2), masks.flatten(2)).unflatten(2, masks.shape[2:])


def test_onnxruntime_gives_the_same_for_any_batch_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    spec = {
        "backbone": {
            "swin": {
                "embed_dim": 24,
                "depths": [1, 2, 1, 1],
                "num_heads": [2, 3, 4, 6],
                "window_size": 5,
                "mlp_ratio": 2.0,
            }
        },
        "sem_seg_head": {"num_classes": 5, "convs_dim": 32, "mask_dim": 24, "transformer_enc_layers": 1},
        "mask_former": {"hidden_dim": 64, "nheads": 4, "num_object_queries": 6, "dec_layers": 3, "dim_feedforward": 96},
    }
    model = Semantic(build(load("train", {"model": spec}))).eval()
    file = tmp_path / "network.onnx"
    torch.onnx.export(
        model,
        (torch.randn(2, 3, 64, 96),),
        file,
        input_names=["inputs"],
        output_names=["pred_masks"],
        dynamo=True,
        opset_version=18,
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        verbose=False,
    )

    graph = onnx.load(file)
    onnx.checker.check_model(graph)
    assert {opset.domain for opset in graph.opset_import} <= {"", "ai.onnx"}
    assert {node.domain for node in graph.graph.node} <= {"", "ai.onnx"}
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        images = torch.randn(batch, 3, 64, 96)
        with torch.no_grad():
            expected = model(images).numpy()
        (found,) = session.run(None, {"inputs": images.numpy()})
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
