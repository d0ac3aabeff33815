"""Run by paddle.distributed.launch: both processes leave out the updates in which one of them meets a NaN."""

import sys
from pathlib import Path

import paddle

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import engine_pretrain
import models_mae
from util.compute import amp
from util.optim.update_rule import UpdateRule
from util.run.epoch_log import EpochLog
from util.system import distributed

distributed.init("cpu")
paddle.seed(0)
model = models_mae.MODELS["mae_vit_tiny_patch4"](img_size=8)
optimizer = paddle.optimizer.SGD(0.1, model.parameters())
batches = []
for step in range(7):
    images = paddle.full(
        [2, 3, 8, 8], float("nan") if (step, distributed.rank()) in ((1, 1), (4, 0)) else step
    )
    batches.append((images, paddle.rand([2, 4])))
met, updates = [], []
rule = UpdateRule(optimizer, amp.grad_scaler(None), lambda epoch: 0.1, int(sys.argv[1]), amp.autocast(None))
engine_pretrain.train_one_epoch(
    distributed.data_parallel(model),
    batches,
    rule,
    EpochLog(0, len(batches)),
    mask_ratio=0.5,
    on_nan=lambda log, step, model, inputs: met.append(step),
    after_update=lambda steps, skipped: updates.append((steps, skipped)),
)
total = sum(p.astype("float64").sum().item() for p in model.parameters())
print("met", met, "updates", updates, "same", distributed.all_sum([total])[0] == 2 * total, total == total)
