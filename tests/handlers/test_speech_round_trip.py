"""Fifty sentences spoken by the starter voice and written down by the starter transcriber."""

import logging
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from handlers.audio.decode import decode
from handlers.audio.encode import Encoder
from handlers.sources import fetch
from handlers.speech import hibari
from handlers.speech.hibari import HibariEngine
from handlers.speech.types import Sentence
from handlers.starter import SPEECH, TRANSCRIPTION
from handlers.transcription.faster_whisper import load as load_whisper
from tests.handlers.speech_models import text_of
from tests.wer import word_error_rate

logger = logging.getLogger(__name__)

# Questions, orders and lists, long and short, with numbers as Whisper writes them.
SENTENCES = """\
The old captain walked slowly along the river and watched the boats come home.
My younger sister read the letter twice before putting it back into the drawer.
Why was the train from London late again this morning?
Please buy fresh bread, a bag of apples and some cheese at the market.
Close the window, because the wind is getting colder.
The committee met on Tuesday and agreed to publish the whole report.
Nobody expected the weather to change so quickly.
Send the corrected figures before noon, or call me tomorrow.
What happened next surprised everyone in the room.
The harvest was already safe in the barns when the storm began.
Can you tell me where the nearest pharmacy is?
Doctors recommend at least eight hours of sleep every night.
The museum is open from Monday to Friday, and it is closed on public holidays.
She learned to play the piano when she was five years old.
Turn left at the traffic lights and follow the road to the bridge.
The company reported higher profits than in the previous year.
Water boils at a lower temperature in the mountains.
He forgot his umbrella and came home completely wet.
Scientists have discovered a new planet beyond the solar system.
Have you finished your homework yet?
The children built a castle of sand on the beach.
Your order has been shipped and will arrive on Thursday.
I would rather stay at home and read a good book.
The president will speak to the nation this evening.
If it rains on Saturday, the game will be moved to Sunday.
Press the green button to start the machine.
The soup needs a little more salt and some black pepper.
Thousands of people gathered in the streets to celebrate the victory.
It took the engineers three months to repair the damaged bridge.
Do not forget to water the plants while I am away.
The library has a large collection of books about history and art.
My grandfather used to tell us stories about life at sea.
A small brown dog was waiting patiently in front of the door.
The flight to New York was delayed because of heavy snow.
How much does a ticket to the concert cost?
Most of the students passed the final examination.
The river runs through the valley and into the lake.
Please listen carefully, as our menu has recently changed.
Electric cars are becoming cheaper every year.
The teacher asked the class to be quiet and open their books.
We spent the whole summer in a little village in Italy.
Fresh vegetables taste better than frozen ones.
The police are looking for a man with a red jacket.
Is there anything else I can help you with today?
The first chapter explains the basic ideas of the theory.
Her voice was so soft that nobody could hear her.
After dinner they went for a long walk in the park.
The price of oil has fallen for the third time this week.
Every morning he drinks a cup of coffee and reads the newspaper.
Thank you for calling, and have a wonderful day.
""".splitlines()


def spoken(engine: HibariEngine, text: str) -> bytes:
    """An MP3, as a client gets it by default."""
    with Encoder("mp3", engine.sample_rate) as encoder:
        pieces = []
        for answer in engine.speak([Sentence(sentence, "heart") for sentence in engine.prepare(text).sentences]):
            assert isinstance(answer, np.ndarray)
            pieces.append(encoder.write(answer))
        return b"".join([*pieces, encoder.finish()])


@pytest.mark.models
@pytest.mark.slow
def test_fifty_sentences_are_understood(models_dir: Path) -> None:
    engine = hibari.load(SPEECH, fetch(SPEECH.source, Path()))
    whisper = load_whisper(replace(TRANSCRIPTION, device="cpu"), fetch(TRANSCRIPTION.source, models_dir))
    heard = []
    for text in SENTENCES:
        waveform = decode(BytesIO(spoken(engine, text)), max_seconds=60)
        heard.append(text_of(whisper, waveform))
        if (rate := word_error_rate(text, heard[-1])) > 0:
            logger.info("%r is heard as %r, word error rate %.2f", text, heard[-1], rate)
    rate = word_error_rate(" ".join(SENTENCES), " ".join(heard))
    logger.info("%d sentences, word error rate %.4f", len(SENTENCES), rate)
    assert (len(SENTENCES), rate <= 0.05) == (50, True)
