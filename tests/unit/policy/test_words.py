"""Which words turn AutoML off, which do not, and that reading them takes no time."""

import time

import pytest

from mask2former_mcp.policy import BundleState, decide
from mask2former_mcp.wish import read

READY = BundleState(automl_enabled=True)

OFF = """
turn off AutoML
Turn off automl for this run.
turn AutoML off
please turn the auto-ml off
switch off HPO
switch HPO off please
shut off the hyperparameter search
disable AutoML
Disable Auto ML and train on /data
train on /data with AutoML disabled
please disable hyper-parameter optimisation
deactivate AutoML
no HPO
No AutoML.
no automl, no hpo
no hyperparameter search please
no hyper parameter tuning
Train Mask2Former on s3://bucket/data, no HPO, 10 epochs
train --no-automl
train with no-hpo
plain training
just plain training
Plain training on /data/coco, please
a plain training run
do plain old training
I want plain training only
just do a plain train
vanilla training
direct training
direct model training
without AutoML
Train on this folder without any AutoML
without HPO and without sweeps
w/o automl
without using AutoML
AutoML off please
AutoML off
automl: off
automl=off
automl_policy: off
automl_policy=off
`automl_policy: off`
set automl_policy to off
AutoML should be off
AutoML must be disabled
AutoML: disabled
HPO off!
keep AutoML off
leave AutoML out
leave HPO off
skip the hyperparameter search
skip AutoML
skip hpo this time
bypass AutoML
avoid AutoML
avoid using AutoML
stop using AutoML
opt out of AutoML
don't use AutoML
do not use AutoML
dont use automl
don\u2019t run HPO
never run AutoML on this dataset
do not run a hyperparameter search
I don't want AutoML
I do not want any HPO
we don't need AutoML
no need for AutoML
no need to use AutoML
no need to run HPO
you needn't run AutoML
you don't have to do HPO
AutoML is not needed
HPO isn't necessary
AutoML should not be used
please don't bother with hyperparameter tuning
don't start AutoML
don't enable AutoML
don't turn on AutoML
do not enable HPO
don't forget to disable AutoML
Please, do not hesitate to turn off AutoML
can you turn off AutoML?
could you please disable automl?
if possible, disable AutoML
disable AutoML and HPO
turn off both: automl and hpo... so: no hpo
AutoML-free training
train it rather than HPO
use plain training instead of AutoML
I used AutoML last time. Turn off AutoML now.
Last time: AutoML. This time no HPO
non-AutoML run
turn the AutoML thing off
turn off wandb and AutoML
disable wandb, HPO and tensorboard
don't tune hyperparameters
do not search hyperparameters
train without tuning the hyperparameters
single run, no sweeps
no tuning, just train
AutoML: no
automl_policy='off'
"automl_policy": "off"
train on /data/with-automl and turn off AutoML
I don't want AutoML turned on
should I turn off AutoML? yes
AutoML? no
AutoML? No thanks.
HPO? no, thanks
AutoML, no thanks
use AutoML? no
run HPO? nope
AutoML on? no, off
keep AutoML on? no, turn it off
use AutoML - no wait, turn it off
disable AutoML? yes
turn off AutoML? Yes, do that.
AutoML off? Yes please
can you turn off AutoML? No HPO please
Can you turn off AutoML? Don't use AutoML please.
I don't want HPO
I dont want HPO or any search
I want AutoML off
I'd like AutoML turned off
with AutoML turned off
I'd rather not have HPO
we do not require AutoML
AutoML not needed
HPO not wanted, thanks
hold off on AutoML
ditch AutoML
scrap the hyperparameter search
forget about AutoML
not with AutoML
AutoML -> off
AutoML => off
AutoML: never
under no circumstances use AutoML
it would be a mistake to use AutoML here
Bitte kein AutoML
kein Auto-ML bitte
ohne AutoML
Trainiere das Modell auf /data/belt ohne Hyperparametersuche.
Keine Hyperparameter-Optimierung, einfach trainieren
Training bitte nicht mit AutoML
schalte AutoML aus
AutoML bitte aus
Train a panoptic model on /data/belt with 20 epochs and a swin_small backbone. Turn off AutoML, we have one GPU only.
automl_enabled: false
automl_enabled=false
automl enabled: no
plain fine-tuning
a plain fine-tuning run
automl-policy: off
automl-policy=off
--automl-policy off
a single training run, no search
no auto-tuning
automl_enabled is false
set automl_enabled to false
"automl_enabled": false
enable_automl=false
disable AutoML entirely
turn off AutoML we have one GPU only
skip validation or disable AutoML
never mind the search: just plain training
no search please
turn off AutoML (one GPU only)
No AutoML needed
do not use AutoML yet
do not use AutoML tonight
do not use AutoML right now
do not use AutoML ever
do not use AutoML either
do not use AutoML unless needed
do not use AutoML under any circumstances
do not use AutoML due to time limits
we will not use automl however
don't run HPO beforehand
please avoid using automl tonight
skip automl tonight
no automl tonight
train without automl tonight
without automl tonight
turn off wandb and AutoML tonight
do not keep AutoML
do not train with automl
don't run it using AutoML tonight
AutoML is on by default, right? Turn it off
""".strip().splitlines()

NOT_OFF = """
don't disable AutoML
Don\u2019t disable AutoML
dont disable automl
do not disable AutoML
do not turn off hpo
don't turn AutoML off
please do not switch HPO off
never disable AutoML
never turn off AutoML
no need to disable automl
there is no need to turn off AutoML
no reason to disable AutoML
you don't need to disable AutoML
you do not have to turn off HPO
you needn't disable AutoML
we shouldn't turn off AutoML
you should not disable HPO
must not disable AutoML
I don't want you to disable AutoML
I do not want to turn off AutoML
I would not disable AutoML
without disabling AutoML
without turning off HPO
AutoML should not be disabled
AutoML must not be turned off
AutoML mustn't be off
AutoML should never be disabled
don't skip the hyperparameter search
do not skip AutoML
don't avoid AutoML
don't stop using AutoML
not without AutoML
don't leave AutoML out
do not keep AutoML off
not plain training
I don't want plain training
this is not just plain training
rather than plain training, search
instead of plain training use AutoML
no AutoML? No: turn on AutoML
Does it use AutoML? no, please use it
Use AutoML. wandb? no, turn it off
train with AutoML; for wandb, turn it off
disable AutoML? no, keep it on
Disable AutoML? No.
disable automl?? nope
disable automl? nah, keep it
turn off AutoML? no, don't
turn off HPO? No way.
turn AutoML off? never
no HPO? no, use it
AutoML off? No, leave it on
do I want AutoML off? no
plain training? no, please search
should AutoML be off? No.
disable AutoML - no, wait, leave it on
disable AutoML... no, keep it on
disable AutoML, no, keep it on
turn off AutoML, no wait, keep it on
turn AutoML off, actually no, leave it on
please don't turn off AutoML
don't you dare turn off AutoML
under no circumstances disable AutoML
it would be a mistake to turn off AutoML
nobody said to turn off AutoML
I am not asking you to disable AutoML
please do not run without AutoML
don't train without HPO
never train it without AutoML
don't go without AutoML
do not do plain training
I don't want AutoML off
I don't want AutoML disabled
I do not want HPO switched off
don't forget AutoML
AutoML off is not what I want
don't even think of: well, use AutoML
nicht ohne AutoML
Trainiere mit AutoML auf /data/belt
turn on AutoML
turn AutoML on
use AutoML
with AutoML
enable HPO
run a hyperparameter search
keep AutoML on
keep AutoML
automl_policy: on
automl: on
AutoML on please
automl_policy=auto
automl_policy auto
turn off wandb and keep AutoML
disable wandb, AutoML on
turn off wandb and use AutoML
do not disable or turn off AutoML
don't turn off or disable AutoML
never skip or disable HPO
Don't disable or skip AutoML
I never said disable AutoML
last run was plain training, now search hyperparameters
Turn off AutoML? I don't think so, keep it
neither skip nor disable HPO
don't skip, disable or turn off AutoML
automl_enabled: true
turn off AutoML? Of course not
plain training? I'd rather not, use AutoML
don't use AutoML pruning
stop disabling AutoML
avoid plain training
no more plain training
nobody wants AutoML off
please do not under any circumstances turn off AutoML
do not stop, use automl
don't use wandb, use automl
do not train without automl
do not train without automl tonight
don't forget to use automl
use automl tonight
stop the old job and use automl
disable wandb, AutoML may run
AutoML is off by default, right? turn it on
""".strip().splitlines()

SILENT = """
train Mask2Former on /data
train on a picture set of plain trains
a plain background, training images in /data
segment the trains on plain tracks
turn off the light in the images
disable wandb
no augmentation
without a GPU
turn off mixed precision
should I turn off AutoML?
what happens if I disable AutoML?
No HPO results yet
automatic number plates
the class named hpoint
turn off deterministic mode and train for 5 epochs
skip validation
direct the output to /results; training data is in /data
train an autoML-like
explain training
complain training
what does plain training mean?
train mask2former on /data/no-hpo
train on s3://bucket/automl-off/train
train_dataset=/data/disable-automl, 5 epochs
images in ../plain training sets/x
no fine-tuning of the backbone
no, keep it on
wandb: no wait, turn it off
what happens if I disable AutoML? no idea
turn off AutoML logging
disable AutoML early stopping
plain training isn't what I want
is plain training possible?
disabling AutoML is a bad idea
no AutoML logging please
disable AutoML-based scheduling
is AutoML off?
plain training was not what I asked for
the previous job had AutoML off
no search results
can I disable AutoML?
AutoML was turned off by mistake
turn off early stopping of AutoML
plain training won't do
do not use AutoML logging
don't run HPO trials
disable AutoML early stopping tonight
turn off the AutoML final report
no hyperparameter search results
skip AutoML's budget
without AutoML metrics
""".strip().splitlines()


@pytest.mark.parametrize("words", OFF)
def test_words_that_turn_automl_off(words: str) -> None:
    decision = decide("train", None, words, READY)
    assert (decision.policy, decision.route, decision.source) == ("off", "direct", "request"), decision
    assert decision.warnings == ()


@pytest.mark.parametrize("words", [*NOT_OFF, *SILENT, "", "   ", "\n"])
def test_words_that_do_not(words: str) -> None:
    decision = decide("train", None, words, READY)
    assert (decision.policy, decision.route) == ("auto", "automl"), decision


@pytest.mark.parametrize("words", [line for line in SILENT if "like" not in line])
def test_words_about_something_else_say_nothing(words: str) -> None:
    assert read(words) is None
    assert decide("train", None, words, READY).source == "default"


@pytest.mark.parametrize(
    "words", ["pas d'AutoML", "sin AutoML, por favor", "niente HPO", "AutoML nein", "what happens if I disable AutoML?"]
)
def test_words_about_automl_that_nobody_understands_are_said_to_be_so(words: str) -> None:
    decision = decide("train", None, words, READY)
    assert (decision.policy, decision.source) == ("auto", "default")
    assert "not understood" in decision.reason
    assert "pass automl_policy" in decision.warnings[0]
    assert decide("train", "off", words, READY).warnings == ()


@pytest.mark.parametrize("words", ["train on /data/no-hpo", "tune the hyperparameters of your prose", "go"])
def test_words_that_name_no_search_need_no_warning(words: str) -> None:
    assert decide("train", None, words, READY).warnings == ()


def test_what_is_said_last_counts() -> None:
    assert decide("train", None, "No HPO. Actually, use AutoML.", READY).policy == "auto"
    assert decide("train", None, "Use AutoML. Actually, no HPO.", READY).policy == "off"


def test_long_text_is_read_quickly() -> None:
    for words in ("do not ", "the ", "no the any all ", "plain old ", "turn ", "= : ", "don't to for in "):
        assert read(words * 6000) is None
    assert read("automl and " * 2000) is None


def test_a_wrapped_line_goes_on_and_a_list_does_not() -> None:
    wrapped = read("Please train it on my images and turn off\nAutoML, thanks.")
    assert wrapped is not None
    assert wrapped.policy == "off"
    listed = read("- turn off\n- AutoML report at the end, please")
    assert listed is None or listed.policy != "off"


@pytest.mark.parametrize(
    "words",
    [
        "don't ",
        "automl ",
        "no need to please ",
        "a",
        "is are be ",
        "/a",
        "set automl is ",
        "no wait ",
        "don't use ",
        "use automl ",
    ],
)
def test_long_texts_are_read_quickly(words: str) -> None:
    text = words * (40_000 // len(words))
    start = time.process_time()
    read(text)
    assert time.process_time() - start < 15  # about 1 s; patterns that look back over the whole text take minutes
