"""Counting right answers."""
import paddle


def topk_correct(logits, labels, ks=(1, 5)):
    """logits [N, C], labels [N] -> for each k, how many labels are among the k largest logits, as 0-D tensors.

    With fewer than k classes every label is.
    """
    _, ranked = paddle.topk(logits, min(max(ks), logits.shape[1]), axis=1)
    hits = (ranked == labels.reshape([-1, 1])).astype("float32")
    return [hits[:, :k].sum() for k in ks]
