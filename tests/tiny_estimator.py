"A linear estimator that takes its time, for tests of the batch: trains, saves, resumes, and has a parameter that changes prediction only."
import time

from torch import nn

from au_study.training import AUEstimator, Trainer, masked_bce


class TinyNet(nn.Module):
    def __init__(self, n_in, n_out):
        super().__init__()
        self.linear = nn.Linear(n_in, n_out)

    def forward(self, image): return self.linear(image.flatten(1))


class Tiny(AUEstimator):
    "Pixels times weights; `shift` is added to the logits in prediction, `seconds` is slept at every step."
    predict_only = ("shift",)

    def __init__(self, shift=0.0, seconds=0.0, fail=False, trainer=None):
        self.shift, self.seconds, self.fail, self.trainer = shift, seconds, fail, trainer

    @classmethod
    def default_trainer(cls): return Trainer(epochs=3, batch_size=8, lr=0.01, checkpoint_seconds=0)

    def build(self, faces): return TinyNet(3 * faces.crops.shape[1] ** 2, len(faces.aus))

    def loss(self, module, batch):
        if self.fail: raise RuntimeError("this estimator fails on purpose")
        time.sleep(self.seconds)
        return masked_bce(module(batch.image), batch.labels)

    def scores(self, module, batch): return (module(batch.image) + self.shift).sigmoid()
