"""Compares the categories of lib/text with those of Hugging Face's tokenizers, code point by code point; prints where they differ.
Run: ./categories | /work/venv/bin/python compare_categories.py (categories.c beside this). The tables of lib/text/unicode_old.c
are what it printed for mark, nonsp, bertpunct and clean before they were there.
"""
import sys, unicodedata
from tokenizers import normalizers as N, pre_tokenizers as P
ours={}
for l in sys.stdin:
    f=l.split(); ours[int(f[0],16)]=(f[1]=='1',f[2]=='1',f[3]=='1',f[4]=='1',f[5]=='1',f[6]=='1',f[7]=='1',chr(int(f[8],16))+(chr(int(f[9],16)) if f[9]!='0' else ''))
sa=N.StripAccents(); clean=N.BertNormalizer(clean_text=True,handle_chinese_chars=False,strip_accents=False,lowercase=False)
acc=N.BertNormalizer(clean_text=False,handle_chinese_chars=False,strip_accents=True,lowercase=False); low=N.Lowercase(); chin=N.BertNormalizer(clean_text=False,handle_chinese_chars=True,strip_accents=False,lowercase=False)
bp=P.BertPreTokenizer(); pun=P.Punctuation(); dig=P.Digits(individual_digits=True); ws=P.WhitespaceSplit(); w=P.Whitespace(); nfd=N.NFD(); nfkd=N.NFKD(); nfkc=N.NFKC(); strip=N.Strip()
diff={k:[] for k in 'mark nonsp clean punct bertpunct num space word lower'.split()}
def rng(l):
    o=[];
    for c in l:
        if o and o[-1][1]==c-1: o[-1][1]=c
        else: o.append([c,c])
    return ' '.join(f'{a:x}-{b:x}' if a!=b else f'{a:x}' for a,b in o)
for c,(mark,nons,oth,pu,nu,sp,wo,lo) in ours.items():
    s=chr(c)
    if (sa.normalize_str('a'+s)=='a')!=mark: diff['mark'].append(c)
    r=clean.normalize_str('a'+s+'b'); exp='ab' if (c==0 or c==0xfffd or (c not in(9,10,13) and oth)) else 'a b' if sp else 'a'+s+'b'
    if r!=exp: diff['clean'].append(c)
    d=unicodedata.normalize('NFD',s)
    if len(d)==1 and d==s:
        r=acc.normalize_str('a'+s+'b')
        if (r=='ab')!=nons: diff['nonsp'].append(c)
    t=[x[0] for x in bp.pre_tokenize_str('a'+s+'b')]
    e=['a','b'] if sp else ['a',s,'b'] if pu else ['a'+s+'b']
    if t!=e: diff['bertpunct'].append(c)
    if (len(dig.pre_tokenize_str('a'+s+'b'))==3)!=nu: diff['num'].append(c)
    if ([x[0] for x in ws.pre_tokenize_str('a'+s+'b')]==['a','b'])!=sp: diff['space'].append(c)
    t=[x[0] for x in w.pre_tokenize_str('a'+s+'b')]
    if (t==['a'+s+'b'])!=wo: diff['word'].append(c)
    if low.normalize_str(s)!=lo: diff['lower'].append(c)
for k,v in diff.items(): print(k,len(v),rng(v)[:3000])
