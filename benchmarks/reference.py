"""The reference loop: distillation as tutorials write it.

It uses torchvision's data set with transforms per sample, a DataLoader without workers, and
Adam; the teacher is evaluated in every step. Like our runs, it trains on 55,000 images,
validates after each epoch, and tests student and teacher at the end.

    python benchmarks/reference.py DATA TEACHER.pt BATCH_SIZE EPOCHS [SAMPLES]
"""

import json
import sys
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

from kd_lightning.nets.cnn import StudentCNN, TeacherCNN

T, ALPHA = 5.0, 0.5


def accuracy(net: nn.Module, loader: DataLoader) -> float:
    """Return the share of samples whose most probable class is the label."""
    net.eval()
    correct = total = 0
    with torch.no_grad():
        for x, y in loader:
            correct += (net(x).argmax(1) == y).sum().item()
            total += len(y)
    return correct / total


def distillation_loss(z_s: Tensor, z_t: Tensor, target: Tensor) -> Tensor:
    """Return the loss from logits of student and teacher, B×C, and labels, B."""
    hard = F.cross_entropy(z_s, target)
    soft = F.kl_div(F.log_softmax(z_s / T, dim=1), F.softmax(z_t / T, dim=1), reduction="batchmean")
    # T² restores the size of the soft gradients, which fall as 1/T² (Hinton et al. 2015, §2)
    return (1 - ALPHA) * hard + ALPHA * T**2 * soft


def main(root: str, teacher_file: str, batch_size: int, epochs: int, samples: int) -> None:
    """Train a student and print the accuracies and the seconds of each epoch as JSON.

    Args:
        root: folder of MNIST.
        teacher_file: the teacher's state dict.
        batch_size: samples per step.
        epochs: number of epochs.
        samples: number of training samples.
    """
    torch.manual_seed(0)
    transform = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))]
    )
    # as many validation samples as in our runs, but the last ones instead of random ones
    full = datasets.MNIST(root, train=True, transform=transform)
    test = DataLoader(datasets.MNIST(root, train=False, transform=transform), batch_size=1000)
    train = DataLoader(Subset(full, range(samples)), batch_size=batch_size, shuffle=True)
    val = DataLoader(Subset(full, range(55_000, 60_000)), batch_size=1000)

    teacher = TeacherCNN((1, 28, 28), 10)
    teacher.load_state_dict(torch.load(teacher_file, weights_only=True))
    teacher.eval()
    student = StudentCNN((1, 28, 28), 10)
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)

    seconds = []
    for _ in range(epochs):
        start = time.perf_counter()
        student.train()
        for x, y in train:
            # evaluated anew in every epoch, although the teacher and its inputs never change
            with torch.no_grad():
                z_t = teacher(x)
            loss = distillation_loss(student(x), z_t, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        seconds.append(time.perf_counter() - start)
        accuracy(student, val)
    result = {"student": accuracy(student, test), "teacher": accuracy(teacher, test)}
    print(json.dumps({**result, "epoch_seconds": seconds}))


if __name__ == "__main__":
    numbers = [int(number) for number in sys.argv[3:]]
    main(sys.argv[1], sys.argv[2], *numbers, *([55_000] if len(numbers) == 2 else []))
