"""The model card's figures: the sizes of what ships, and how a training went."""

from minflux import zoo
from tests.shipped import needs_weights
from tools import model_card


def test_a_training_is_summed_up(tmp_path):
    for part, losses in (("vae/crops", [4, 2]), ("flow/every", [1] * 150)):
        (tmp_path / part).mkdir(parents=True)
        rows = [f"{i},{loss},0.1,0.001,36" for i, loss in enumerate(losses, 1)]
        text = "\n".join(["step,loss,gradient_norm,learning_rate,seconds", *rows])
        (tmp_path / part / "log.csv").write_text(text + "\n")
    _, vae, flow = model_card.training(tmp_path)
    assert vae == ["vae/crops", "2", "0.0", "3.0000"]
    assert flow == ["flow/every", "150", "1.5", "1.0000"]


@needs_weights
def test_the_sizes_of_the_shipped_model_add_up():
    *parts, (_, total, megabytes) = model_card.sizes(zoo.FOLDER / "tiny")[1:]
    assert sum(int(part[1].replace(",", "")) for part in parts) == int(total.replace(",", ""))
    assert float(megabytes) <= 40
