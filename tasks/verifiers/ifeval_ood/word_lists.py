"""Lists of English words that the constraints count, and of names that answers are compared with (see the package)."""


def word_set(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


NLTK_STOP_WORDS = word_set(
    """i me my myself we our ours ourselves you your yours yourself yourselves he him his himself she her hers herself it its
    itself they them their theirs themselves what which who whom this that these those am is are was were be been being
    have has had having do does did doing a an the and but if or because as until while of at by for with about against
    between into through during before after above below to from up down in out on off over under again further then once
    here there when where why how all any both each few more most other some such no nor not only own same so than too
    very s t can will just don should now d ll m o re ve y ain aren couldn didn doesn hadn hasn haven isn ma mightn mustn
    needn shan shouldn wasn weren won wouldn"""
)
"""NLTK's English list as runs of letters: words are counted as such, so its entries with an apostrophe never occur."""
PRONOUNS = word_set(
    """i me we us you he him she her it they them my mine our ours your yours his hers its their theirs myself ourselves
    yourself yourselves himself herself itself themselves this that these those who whom whose which what whoever whomever
    whatever whichever anybody anyone anything everybody everyone everything nobody nothing somebody someone something
    each either neither both all some any none"""
)
"""Personal, possessive, reflexive, demonstrative, interrogative, relative and indefinite ones, as the official check has them."""
CONJUNCTIONS = word_set("""and but for nor or so yet""")
"""Coordinating ones."""
NAMES = word_set(
    """Emma Liam Sophia Jackson Olivia Noah Ava Lucas Isabella Mason Mia Ethan Charlotte Alexander Amelia Benjamin Harper Leo
    Zoe Daniel Chloe Samuel Lily Matthew Grace Owen Abigail Gabriel Ella Jacob Scarlett Nathan Victoria Elijah Layla
    Nicholas Audrey David Hannah Christopher Penelope Thomas Nora Andrew Aria Joseph Claire Ryan Stella Jonathan"""
)
"""The 50 first names that the prompts list."""
VERBS = word_set(
    """accept access accommodate achieve acknowledge acquire act adapt add address adjust admire admit adopt advance advise
    affirm aim align allocate allow analyse analyze announce answer anticipate apologise apologize appear apply appoint
    appreciate approach arrange arrive ascertain ask aspire assemble assert assess assign assist assume assure attach
    attempt attend avoid awaken bake balance base be bear beat become beg begin behold believe bend bet bind blend bless
    blow boil book boost borrow bother bow break breathe brew bring broaden brush build burn buy calculate call calm care
    carry cast catch cause celebrate challenge change charge chase check cherish choose chop cite claim clarify classify
    clean clear click climb close collaborate collect combine come comment commit communicate compare compile complain
    complete compose comprehend compute concentrate conclude conduct confirm confront connect consider consist construct
    consult contact contain contemplate continue contribute control convert convey convince cook copy correct count cover
    craft create cross cry cultivate cut dance dare deal decide declare decline decorate dedicate deepen define delegate
    delete deliver delve demand demonstrate deny depend deploy derive describe deserve design desire destroy detail detect
    determine develop devise diagnose die differ dig direct discard discover discuss dismiss display dissolve distinguish
    distribute dive divide do document doubt drag draw dream drink drive drop earn eat edit educate elaborate elevate
    eliminate embark embrace emerge emphasise emphasize employ empower enable enclose encounter encourage end engage
    enhance enjoy enlarge ensure enter entertain envision equip escape establish estimate evaluate evolve examine exclude
    execute exercise exist expand expect experience experiment explain exploit explore export express extend extract face
    facilitate fail fall feed feel fetch fight figure file fill filter finalise finalize find finish fit fix float flow
    fly focus fold follow forget forgive form formulate foster free fulfil fulfill function gain gather gaze generate get
    give glance go grab grasp greet grind grow guarantee guard guess guide handle hang happen harness have hear heat help
    hide highlight hike hire hit hold honor honour hope identify ignite ignore illustrate imagine implement imply import
    improve include incorporate increase indicate influence inform initialise initialize innovate insert inspect inspire
    install integrate intend interact interpret introduce invent invest investigate invite involve isolate join judge jump
    justify keep kick kill kiss knock know label lack laugh launch lay lead lean leap learn leave lend let level leverage
    lie lift light like limit link list listen live load locate lock look lose love lower maintain make manage map march
    mark master match matter maximise maximize mean measure meet melt mention merge minimise minimize mix modify monitor
    motivate move multiply name navigate need neglect negotiate nod note notice nurture obey observe obtain occur offer
    open operate optimise optimize order organise organize outline overcome own pack paint park participate pass pause pay
    perceive perform permit persist persuade pick picture place plan plant play please plug point ponder possess post pour
    practice practise praise pray predict prefer prepare present preserve press pretend prevent print prioritise
    prioritize proceed process produce program promise promote prompt propose protect prove provide publish pull purchase
    pursue push put question quit quote raise reach react read realise realize reason recall receive recognise recognize
    recommend reconsider record recover reduce refer reflect refuse regard register reject relate relax release rely
    remain remember remind remove render repeat replace reply report represent request require research reserve resist
    resolve respect respond rest restore result retain retrieve return reveal review revise rewrite ride ring rise roam
    roll rotate run rush sail save say scale scan search secure see seek seem select sell send sense separate serve set
    settle shake shape share shift shine shoot shop shout show shut sign signal simplify sing sink sit sketch sleep slide
    slow smell smile soar solve sort sound speak specify spell spend spin split spread stand start state stay steal step
    stick stir stop store strengthen stretch strike strive structure struggle study submit succeed suffer suggest suit
    summarise summarize supply support suppose surround survive sustain swim switch take talk taste teach tear tell tend
    test thank think throw tie touch track trade train transfer transform translate travel traverse treat trust try turn
    type uncover understand undertake unite unlock unveil update upgrade uphold use utilise utilize validate value vary
    verify view visit visualise visualize vote wait wake walk wander want warm warn wash waste watch wear weave welcome
    whisk whisper win wish witness wonder work worry wrap write yield"""
)
"""Common verbs as in a dictionary or a command."""
IRREGULAR_VERB_FORMS = word_set(
    """am is are was were been being does did done has had ate eaten became begun began bent bound bled blew blown bought
    broke broken brought built burnt came caught chose chosen clung crept dealt drank drawn drew driven drove drunk dreamt
    dug fallen fed fell felt flew flown forgave forgiven forgot forgotten fought found frozen froze gave given gone got
    gotten grew grown heard held hid hidden hung kept knew known laid lain led left lent lit lost made meant met overcame
    paid proven ran rang rewritten rewrote ridden risen rode rose rung said sang sank sat saw seen sent shaken shone shook
    shot showed shown sold sought spent spoke spoken sprang spun stole stolen stood struck stuck sung sunk swam swum taken
    taught thought threw thrown told took tore torn understood undertook went woke woken won wore worn wove woven written
    wrote"""
)
"""Forms of common verbs that no ending tells."""
