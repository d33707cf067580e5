"""What a training on the CPU costs besides its convolutions, and what each remedy is worth, all in one run.

python benchmarks/training.py [threads]
"""
import subprocess
import sys

import torch
from turns import fastest

from au_study.aunet import FAN, AUHead, AUNetwork, FrozenTrunk, TemporalDifference
from au_study.aunet.network import Recall
from au_study.nets.resnet import ResNet
from au_study.study.runs import keep_memory
from au_study.training.loop import Trainer, make_optimizer


def network(kind):
    """The kit's networks as the quick profile trains them, and a batch."""
    torch.manual_seed(0)
    net = ResNet(101, .125, .5, 8, n_out=12) if kind == 'ResNet-101' else ResNet(18, .125, .5, 8, n_out=12)
    return net.to(memory_format=torch.channels_last), torch.rand(16, 3, 80, 80).contiguous(memory_format=torch.channels_last)


def optimisers(kind):
    """A step of AdamW as `make_optimizer` builds it, beside torch's default, and the gradient that goes before it."""
    net, images = network(kind)
    plain, own = torch.optim.AdamW(net.parameters(), 1e-6), make_optimizer(Trainer(optimizer='adamw', lr=1e-6), net)
    def gradient():
        net.zero_grad()
        net(images).square().mean().backward()
    found = {name: wall for name, (wall, _) in fastest({'gradient': gradient, 'default': plain.step, 'fused': own.step}, 15).items()}
    count = sum(1 for _ in net.parameters())
    print(f"{kind} at an eighth of its channels, {count} tensors of weights, batch 16: gradient {found['gradient'] * 1e3:.1f} ms, AdamW {found['default'] * 1e3:.1f} ms, "
          f"fused {found['fused'] * 1e3:.1f} ms; a step takes {(found['gradient'] + found['default']) / (found['gradient'] + found['fused']):.2f} times as long without")


def features(keep):
    """Seconds of the frozen features of what AUNet predicts at once: 128 samples of three frames."""
    if keep: keep_memory()
    torch.set_num_threads(int(sys.argv[3]))
    torch.manual_seed(0)
    trunk = FrozenTrunk(FAN(2, width=.125, maps='softmax').eval()).to(memory_format=torch.channels_last)
    images = torch.rand(384, 3, 80, 80).contiguous(memory_format=torch.channels_last)
    print(fastest({'features': lambda: trunk(images)}, 3)['features'][0])


def memory(threads):
    """The same features in processes that give freed memory back, and in processes that keep it, in turns."""
    times = {'given back': [], 'kept': []}
    for _ in range(2):
        for how in times:
            out = subprocess.run([sys.executable, __file__, '--features', how, str(threads)], capture_output=True, text=True, check=True)
            times[how].append(float(out.stdout.split()[-1]))
    back, kept = map(min, times.values())
    print(f'Frozen features of AUNet, 384 pictures of 80 px: {back * 1e3:.0f} ms where freed memory is given back to the system, {kept * 1e3:.0f} ms where it is kept; {back / kept:.2f} times as long')


def recall():
    """A gradient of AUNet with motion whose frozen eyes look at 32 samples of three frames, recall them, or look at them for the first time."""
    torch.manual_seed(0)
    trunk = FrozenTrunk(FAN(2, width=.125, maps='softmax').eval())
    net = AUNetwork(trunk, AUHead(32, 12, 32, 3, 32, reduce=False), TemporalDifference(trunk.channels, 32)).to(memory_format=torch.channels_last).train()
    images, remembers = torch.rand(96, 3, 80, 80).contiguous(memory_format=torch.channels_last).unflatten(0, (32, 3)), Recall(1.)
    def gradient(memory):
        net.recall = memory
        net.zero_grad()
        net(images).square().mean().backward()
    found = fastest({'looks': lambda: gradient(Recall()), 'recalls': lambda: gradient(remembers), 'first': lambda: gradient(Recall(1.))}, 5)
    times = {name: wall for name, (wall, _) in found.items()}
    print(f"Gradient of AUNet with motion, 32 samples of 80 px: frozen eyes look {times['looks'] * 1e3:.0f} ms, recall {times['recalls'] * 1e3:.0f} ms, "
          f"look for the first time and keep {times['first'] * 1e3:.0f} ms; looking takes {times['looks'] / times['recalls']:.2f} times as long as recalling")


if __name__ == '__main__':
    if sys.argv[1:2] == ['--features']:
        features(sys.argv[2] == 'kept')
    else:
        threads = int(sys.argv[1]) if len(sys.argv) > 1 else 1
        torch.set_num_threads(threads)
        print(f'{threads} threads, torch {torch.__version__}')
        for kind in ('ResNet-18', 'ResNet-101'): optimisers(kind)
        memory(threads)
        recall()
