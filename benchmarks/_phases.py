import sys,json,gc; from pathlib import Path
import benchmarks.memory_process as mp, torch
from labor_llm.language import finetune as ft
order=json.loads(sys.argv[1])
W=1e9
def st():
    d={l.split(":")[0]:int(l.split()[1])*1024 for l in open("/proc/self/status") if l.startswith(("VmHWM","VmRSS","RssAnon","RssFile"))}
    Path("/proc/self/clear_refs").write_text("5"); return d
base=None
def mark(name):
    d=st()
    if base: print(f"{name:28s}", {k:round((d[k]-base[k])/W,3) for k in d},flush=True)
real=mp.train
class M(ft.FineTuning):
    def training_step(self,b,i):
        mark("before forward"); l=super().training_step(b,i); mark("forward"); return l
    def on_before_optimizer_step(self,o): mark("backward"); super().on_before_optimizer_step(o); mark("clip")
    def on_train_batch_end(self,*a): mark("step")
    def validation_step(self,b,i): mark("before valid"); super().validation_step(b,i); mark("valid")
    def on_fit_end(self): mark("fit end before"); super().on_fit_end()
    def load_trained(self,p): mark("before load_trained"); super().load_trained(p); mark("load_trained")
mp.FineTuning=M
small=mp.LlamaForCausalLM(mp.LlamaConfig(**mp.SMALLEST,num_attention_heads=2)).to(mp.dtype(order))
mp.work(small,order|{"lengths":[20]*len(order["lengths"])}); del small; gc.collect()
base=st()
model=mp.AutoModelForCausalLM.from_pretrained(order["folder"],dtype=mp.dtype(order),use_safetensors=True); mark("loaded")
mp.work(model,order); mark("end")
