"""A small trained network on real images, so that the rules are also compared on weights nobody made up.

`load_model()` gives the network, `load_images()` the test images it has never seen. Both read files that lie in this
package; `python -m verify.questions.digits.train` writes them anew.
"""

from verify.questions.digits.model import Images, load_images, load_model

__all__ = ["Images", "load_images", "load_model"]
