"""Speed of AU R-CNN's parts on the CPU: boxes, RoI pooling, a training step.  python benchmarks/au_rcnn.py [threads]"""
import sys
import time

import numpy as np
import torch

from au_study.au_rcnn.network import AURCNNNet, FaceCNNNet, backbone_parts, roi_loss
from au_study.au_rcnn.partition import au_boxes
from au_study.facs import schematic_face
from au_study.nets.fpn import canonical_size
from au_study.nets.roi import roi_align, roi_pool

BP4D_22 = (1, 2, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 20, 22, 23, 24, 27, 28)
BP4D_12 = (1, 2, 4, 6, 7, 10, 12, 14, 15, 17, 23, 24)


def seconds(call, repeat=5):
    """Median time of a call after one for warming up."""
    call()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return sorted(times)[repeat // 2]


def partition(rng):
    inside = schematic_face(300) + rng.normal(0, 3, (20000, 68, 2)) + 200
    for name, faces in {'float landmarks': inside, 'whole-pixel landmarks': np.round(inside), 'every face cut by the image border': inside - [280, 240]}.items():
        print(f'au_boxes, 22 AUs, 9 boxes, {name:36} {len(faces) / seconds(lambda: au_boxes(faces, BP4D_22)):10,.0f} faces/s')


def pooling():
    generator = torch.Generator().manual_seed(0)
    for channels, cells, size in ((64, 5, 4), (64, 10, 4), (256, 10, 6)):
        features = torch.randn(32, channels, cells, cells, requires_grad=True)
        corner = torch.rand(288, 2, generator=generator) * 40
        boxes = torch.cat([corner, corner + 15 + torch.rand(288, 2, generator=generator) * 25], 1)
        index = torch.arange(32).repeat_interleave(9)
        for layer in (roi_pool, roi_align):
            both = seconds(lambda: layer(features, boxes, index, size, cells / 80).sum().backward())
            print(f'{layer.__name__:9} 32 x 9 boxes on {channels} x {cells} x {cells} to {size} x {size}, forward and backward {both * 1000:8.1f} ms')


def step(rng):
    marks = np.repeat(schematic_face(64)[None], 32, 0) + rng.uniform(2, 14, (32, 1, 2))
    boxes = torch.from_numpy(au_boxes(marks, BP4D_12, 80, 'scaled', None)).float()
    images = torch.rand(32, 3, 80, 80).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(32, boxes.shape[1], len(BP4D_12))
    for name, settings in {'resnet101': dict(width=.125, depth=.15), 'vgg16': dict(width=.125, depth=.67, batch_norm=True), 'resnet101 fpn': dict(width=.125, depth=.15, fpn=True)}.items():
        parts = backbone_parts(name.split()[0], stride=8, grid=4, **settings)
        net = AURCNNNet(BP4D_12, parts, boxes.mean(0).numpy(), 4, canonical=canonical_size(80)).to(memory_format=torch.channels_last)
        print(f'AU R-CNN training step, {name:14} {32 / seconds(lambda: roi_loss(net(images, boxes), labels).backward()):6,.0f} images/s')
    face = FaceCNNNet(BP4D_12, backbone_parts('resnet101', .125, .15, 8)).to(memory_format=torch.channels_last)
    print(f'whole-face training step, resnet101  {32 / seconds(lambda: roi_loss(face(images), labels[:, 0]).backward()):6,.0f} images/s')


if __name__ == '__main__':
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
    partition(np.random.default_rng(0))
    pooling()
    step(np.random.default_rng(0))
