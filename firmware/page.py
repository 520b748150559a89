"""Page: the set-up page in plain words. One column, large letters, no script: it shall work in any browser.

The password is shown as it is typed: who sees badly has to see it, and the way to the Kit is encrypted.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_BEGIN = """<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">\
<meta name="viewport" content="width=device-width,initial-scale=1">%s\
<title>Homeward: connect to Wi-Fi</title>\
<style>body{font:20px/1.5 sans-serif;max-width:32em;margin:0 auto;padding:16px;color:#111;background:#fff}\
h1{font-size:28px;line-height:1.2}label{display:block;margin-top:20px;font-weight:bold}\
input,select,button{font:inherit;box-sizing:border-box;width:100%%;padding:12px;margin-top:4px;color:#111;\
background:#fff;border:2px solid #555;border-radius:8px}\
button{margin-top:24px;background:#003087;color:#fff;border-color:#003087;font-weight:bold}\
:focus{outline:4px solid #ffb81c;outline-offset:2px}\
.no{border-left:8px solid #b00020;padding:8px 12px;background:#fdecee}\
.yes{border-left:8px solid #006747;padding:8px 12px;background:#e8f5ef}\
small{font-weight:normal}</style></head><body>\
"""
_END = "</body></html>"
_FORM = """<h1>Connect this kit to the Wi-Fi in your home</h1>%s\
<p>Your readings are safe in the kit until it is connected.</p>\
<form method="post" action="/join"><input type="hidden" name="token" value="%s">\
<label for="name">Your Wi-Fi<br><small>Its name is often on a label on the router.</small></label>\
<select id="name" name="name"><option value="">Please choose</option>"""
_OPTION = '<option value="%s"%s>%s</option>'
_FORM_END = """</select>\
<label for="other">Not in the list? Type its name</label>\
<input id="other" name="other" maxlength="32" autocomplete="off" autocapitalize="none" spellcheck="false">\
<label for="password">Wi-Fi password<br><small>Capital and small letters matter.</small></label>\
<input id="password" name="password" maxlength="63" autocomplete="off" autocapitalize="none" \
autocorrect="off" spellcheck="false">\
<button>Connect</button></form>"""
_AGAIN = '<meta http-equiv="refresh" content="4;url=/">'
_TRYING = """<h1>Trying &ldquo;%s&rdquo; &hellip;</h1><p>This takes up to half a minute. Your phone may lose \
this page for a moment: if it does, choose the kit's Wi-Fi again and this page comes back.</p>"""
_DONE = """<h1>Connected</h1><p class="yes" role="status">The kit is connected to &ldquo;%s&rdquo; and \
remembers it. You can close this page. Your phone goes back to its own Wi-Fi.</p>"""

# What is said of a try that came to nothing, in words that tell what to do.
WRONG_PASSWORD = "The password for &ldquo;%s&rdquo; is wrong. Please look at it again and type it once more."
ABSENT = "&ldquo;%s&rdquo; was not found. Is the router switched on? Try again nearer to it."
NO_ADDRESS = (
    "&ldquo;%s&rdquo; let the kit in but gave it no address. Switch the router off and on, then try again."
)
REFUSED = "&ldquo;%s&rdquo; did not let the kit in. Please try again, or try another Wi-Fi."
BAD_NAME = "Please choose your Wi-Fi from the list, or type its name."
BAD_PASSWORD = "A Wi-Fi password has 8 to 63 characters. Leave it empty only if your Wi-Fi has none."
NO_ROOM = "The kit knows as many networks as it can. Please call the number on its label."


def form(token: str, names: "list[str]", chosen: str, trouble: str) -> "Iterator[str]":
    """The page that asks. `names`: of the networks found; `trouble`: of the last try, already HTML."""
    yield _BEGIN % ""
    yield _FORM % ('<p class="no" role="alert">%s</p>' % trouble if trouble else "", token)
    for name in names:
        text = escaped(name)
        yield _OPTION % (text, " selected" if name == chosen else "", text)
    yield _FORM_END
    yield _END


def trying(name: str) -> "Iterator[str]":
    """While a network is tried; it asks again by itself."""
    yield _BEGIN % _AGAIN
    yield _TRYING % escaped(name)
    yield _END


def done(name: str) -> "Iterator[str]":
    """The Kit is in a network."""
    yield _BEGIN % ""
    yield _DONE % escaped(name)
    yield _END


def escaped(text: str) -> str:
    """Text that can't be taken for HTML, in an attribute neither."""
    for what, word in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;"), ("'", "&#39;")):
        text = text.replace(what, word)
    return text
