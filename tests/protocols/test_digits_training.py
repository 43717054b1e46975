import torch

from protocols.digits import judges, train_judges, vocabulary
from protocols.digits.classifier import perceptron_network
from protocols.digits.corruptions import Digits
from protocols.digits.data import grey_from_uint8, load_split


def few(recipe, iterations=30):
    return recipe._replace(iterations=iterations)


def small_pool():
    train = load_split("train")
    return Digits(grey_from_uint8(train.images[:300]), train.labels[:300])


def fresh_perceptron(pool):
    torch.manual_seed(0)
    network = perceptron_network()
    train_judges.train_classifier(network, pool, few(train_judges.RECIPES["cross_check"], 150), range)
    return network


def test_training_twice_gives_the_same_bits_and_learns():
    pool = small_pool()
    network, again = fresh_perceptron(pool), fresh_perceptron(pool)
    for key, value in network.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
    with torch.no_grad():
        accuracy = (network(2 * pool.grey - 1).argmax(1) == pool.labels).float().mean()
    assert accuracy > 0.5


def test_a_stored_clip_comes_back_as_it_was(tmp_path):
    torch.manual_seed(0)
    clip = train_judges.new_clip(tmp_path, vocabulary.learn_merges())
    train_judges.train_clip(clip, small_pool(), few(train_judges.RECIPES["clip"]), range)
    train_judges.save_half(clip.model, tmp_path / "model.safetensors")
    opened = judges.load_clip(tmp_path)
    with torch.no_grad():
        expected = clip.text_vectors(judges.class_prompts())
        torch.testing.assert_close(opened.text_vectors(judges.class_prompts()), expected, atol=5e-3, rtol=0)


def test_a_stored_preference_model_comes_back_as_it_was(tmp_path):
    torch.manual_seed(0)
    preference = train_judges.new_preference(tmp_path, vocabulary.learn_merges())
    train_judges.train_preference(preference, small_pool(), few(train_judges.RECIPES["preference"]), range)
    train_judges.save_half(preference.model, tmp_path / "model.safetensors", {"format": "pt"})
    opened = judges.load_preference(tmp_path)
    images = load_split("test").images[:10]
    with torch.no_grad():
        torch.testing.assert_close(opened.image_vectors(images), preference.image_vectors(images), atol=5e-3, rtol=0)
