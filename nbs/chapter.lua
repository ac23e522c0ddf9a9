-- Two things that Quarto does not do for the pages of a website.
-- At the head of each chapter: its notebook, to run and to keep. (The docs workflow copies them into notebooks/: a link to a
-- notebook beside the page would lead to its page.)
local links = [[<p class="notebook">
<a href="https://colab.research.google.com/github/ppqg-nb/ppqg_nb/blob/main/nbs/%s">Open in Colab</a>
<a href="notebooks/%s" download>Download the notebook</a>
<span>In Colab, first run <code>%%pip install -q git+https://github.com/ppqg-nb/ppqg_nb</code></span></p>]]

-- References to equations and figures of another page: as links that say the number there and the chapter.
local input = quarto and quarto.doc.input_file or PANDOC_STATE.input_files[1]
local folder = pandoc.path.directory(quarto and input or PANDOC_SCRIPT_FILE)
local own = pandoc.path.filename(input)
local kinds = {
  eq = { word = 'Eq.', pattern = '{#(eq%-[%w-]+)' },
  fig = { word = 'Figure', pattern = '| label: (fig%-[%w-]+)' },
}

local function read(name)
  local file = assert(io.open(pandoc.path.join { folder, name }, 'r'))
  local text = file:read('a')
  file:close()
  return text
end

-- label -> what to say and where it is, for what the other notebooks label; numbered in each by the order.
local function labels()
  local found = {}
  for _, name in ipairs(pandoc.system.list_directory(folder)) do
    if name:match('%.ipynb$') and name ~= own then
      local text, chapter = read(name), name:match('^%d*%a*')
      local page = name:gsub('%.ipynb$', ''):gsub('^%d+%w*_', '')
      for _, kind in pairs(kinds) do
        local number = 0
        for label in text:gmatch(kind.pattern) do
          number = number + 1
          found[label] = pandoc.Link(kind.word .. ' ' .. number .. ' of chapter ' .. chapter, page .. '.html#' .. label)
        end
      end
    end
  end
  return found
end

local elsewhere

function Cite(cite)
  local label = cite.citations[1].id
  if not kinds[label:match('^%a+')] then return end
  elsewhere = elsewhere or labels()
  return elsewhere[label]
end

function Pandoc(doc)
  if own:match('^%d.*%.ipynb$') then doc.blocks:insert(1, pandoc.RawBlock('html', links:format(own, own))) end
  return doc
end
