import paddle
import pytest

from engine_finetune import topk_correct

LOGITS = [[9.0, 8, 7, 6, 5, 4], [1, 2, 3, 4, 5, 6], [0, 9, 1, 8, 2, 7]]


@pytest.mark.parametrize(
    "labels, top1, top5",
    [([0, 5, 1], 3, 3), ([1, 4, 3], 0, 3), ([4, 1, 4], 0, 3), ([5, 0, 0], 0, 0), ([0, 0, 5], 1, 2)],
)
def test_counts_by_hand(labels, top1, top5):
    found = topk_correct(paddle.to_tensor(LOGITS), paddle.to_tensor(labels))
    assert [count.item() for count in found] == [top1, top5]


@pytest.mark.parametrize("classes, labels, top1", [(3, [0, 2, 0], 2), (1, [0, 0, 0], 3)])
def test_with_few_classes_all_are_among_the_top_five(classes, labels, top1):
    logits = paddle.to_tensor([row[:classes] for row in LOGITS])
    assert [count.item() for count in topk_correct(logits, paddle.to_tensor(labels))] == [top1, 3]


def test_other_ks():
    found = topk_correct(paddle.to_tensor(LOGITS), paddle.to_tensor([1, 3, 5]), ks=(2, 3))
    assert [count.item() for count in found] == [1, 3]
