"""Speed and memory of RE-Net on this machine: the loop over AUs against one pass, and what each remedy is worth.

python benchmarks/re_net.py [threads] [paper|quick]        batches 1 and 32, all measurements in one run; both sizes unless one is named
"""
import subprocess
import sys

import numpy as np
import pandas as pd
import torch
from turns import fastest

from au_study.re_net.adaptive_bn import adaptive_layers
from au_study.re_net.network import RENetwork, network_loss, resnet_parts
from au_study.re_net.one_pass import OnePass, au_by_au
from au_study.re_net.relations import Relation

NAMES = [f'AU{a}' for a in (1, 2, 4, 6, 7, 10, 12, 14, 15, 17, 23, 24)]
SIZES = {'paper, ResNet-18 at 224 px': (1., 16, 224), 'quick, width 1/8 at 70 px': (.125, 8, 70)}


def network(width, stride):
    """A network of twelve AUs whose parameters differ, as if trained."""
    torch.manual_seed(0)
    graph = pd.DataFrame(np.corrcoef(np.random.default_rng(0).normal(size=(12, 1)) * .5 + np.random.default_rng(1).normal(size=(12, 60))), index=NAMES, columns=NAMES)
    net = RENetwork(Relation(graph), resnet_parts(width=width, stride=stride))
    for m in adaptive_layers(net):
        torch.nn.init.normal_(m.weight, 1, .2)
        torch.nn.init.normal_(m.bias, 0, .2)
        m.running_mean.normal_(0, .1)
        m.running_var.uniform_(.5, 1.5)
    return net.eval()


def report(found, unit, against):
    """A line a call: wall and core time, and how many times faster than some of them by either."""
    for name, (wall, core) in found.items():
        gains = ', '.join(f'{found[other][0] / wall:5.2f} / {found[other][1] / core:5.2f} x {other}' for other in against)
        print(f'  {name:38} {wall * 1000 / unit:9.2f} ms, {core * 1000 / unit:9.2f} core ms   {gains}', flush=True)


def inference(title, width, stride, size, batch, repeat):
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    net = network(width, stride).to(device)
    nhwc = network(width, stride).to(device).to(memory_format=torch.channels_last)
    images = torch.rand(batch, 3, size, size, device=device)
    last = images.contiguous(memory_format=torch.channels_last)
    done = torch.cuda.synchronize if device == 'cuda' else (lambda: None)
    kinds = {'one pass': {}, 'one pass, contiguous layout': dict(channels_last=False), 'one pass, bf16': dict(precision='bf16')}
    if device == 'cuda': kinds['one pass, CUDA graph'] = dict(cuda_graph=True)
    ready = {name: OnePass(net, **settings) for name, settings in kinds.items()}
    calls = {'loop over AUs': lambda: (au_by_au(net, images), done()), 'loop, channels_last': lambda: (au_by_au(nhwc, last), done()),
             'network asked for all AUs': lambda: (torch.no_grad()(net)(images), done())}
    calls |= {name: (lambda p=p: (p(images), done())) for name, p in ready.items()}
    few = images[:2]
    gap = (ready['one pass'](few) - au_by_au(net, few)).abs().max().item()
    if batch > 1: calls = {name: calls[name] for name in ('loop over AUs', 'loop, channels_last', 'one pass')}
    print(f'\n{title}, batch {batch}, on {device}: one pass differs from the loop by at most {gap:.1e}; per image, gains by wall / core time:')
    report(fastest(calls, repeat), batch, ('loop over AUs', 'loop, channels_last'))


def training(title, width, stride, size, batch, repeat):
    net, images, labels = network(width, stride).train(), torch.rand(batch, 3, size, size), torch.randint(2, (batch, 12)).float()
    images = images.contiguous(memory_format=torch.channels_last)
    net.to(memory_format=torch.channels_last)
    def step(au):
        net.zero_grad()
        network_loss(net(images, au), labels if au is None else labels[:, au]).backward()
    def loop():
        net.zero_grad()
        for c in range(12): network_loss(net(images, c), labels[:, c]).backward()
    print(f'\n{title}, training step of {batch}')
    report(fastest({'random_au': lambda: step(3), 'all_aus, split behind the first layer': lambda: step(None), 'all_aus, twelve runs': loop}, repeat), 1, ('all_aus, twelve runs',))


def peak(kind, title, batch):
    """Memory of one call in a process of its own, beyond what the network and the images take, in MB."""
    width, stride, size = SIZES[title]
    torch.set_num_threads(1)
    net, images = network(width, stride), torch.rand(batch, 3, size, size)
    au_by_au(net, images[:1, :, :32, :32])                          # libraries are loaded
    with open('/proc/self/clear_refs', 'w') as f: f.write('5')      # Linux: the highest mark starts again from here
    before = status('VmRSS')
    au_by_au(net, images) if kind == 'loop' else torch.no_grad()(net)(images) if kind == 'network' else OnePass(net, memory_mb=float(kind))(images)
    print((status('VmHWM') - before) / 1024)


def status(key):
    """A line of the process's status, in kB."""
    with open('/proc/self/status') as f: return int(next(line for line in f if line.startswith(key)).split()[1])


def memory(title, batch):
    print(f'\n{title}, batch {batch}, memory of a call:')
    for kind, name in (('loop', 'loop over AUs'), ('network', 'network asked for all AUs'), ('64', 'one pass, memory_mb=64'), ('512', 'one pass, memory_mb=512')):
        out = subprocess.run([sys.executable, __file__, '--peak', kind, title, str(batch)], capture_output=True, text=True, check=True)
        print(f'  {name:30} {float(out.stdout.split()[-1]):8.0f} MB')


if __name__ == '__main__':
    if sys.argv[1:2] == ['--peak']:
        peak(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
        print(f'{torch.get_num_threads()} threads, torch {torch.__version__}')
        chosen = sys.argv[2] if len(sys.argv) > 2 else ''
        for title, (width, stride, size) in SIZES.items():
            if not title.startswith(chosen): continue
            big = size > 100
            inference(title, width, stride, size, 1, 5 if big else 30)
            inference(title, width, stride, size, 32, 1 if big else 5)
            training(title, width, stride, size, 2 if big else 16, 2 if big else 5)
            memory(title, 8 if big else 32)
