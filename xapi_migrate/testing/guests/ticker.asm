; The ticker: a guest in one boot sector.    nasm -f bin -o ticker.bin ticker.asm
;
; It counts. At each tick of the PIT it adds one to its counter, writes a sector that holds the counter
; to every disk, and only then prints the counter, in decimal, as one line on COM1. So a number that was
; printed and is not on the disk is a lost write, and a number missing from the console is lost time.
; Between two ticks it sleeps. It also dirties memory above 1 MiB and checks what it wrote there before.
;
; A line begins with X when memory did not hold what was written to it, and with E when a disk refused
; a write. The power button makes it print OFF and power off (PIIX4 power management, machine "pc").
;
; Real mode, "unreal" FS for the memory above 1 MiB; disks through the BIOS, so any disk that boots will do.

PM_STATUS  equ 0x600                    ; where SeaBIOS puts the PIIX4's PM1 registers
PM_ENABLE  equ 0x602
PM_CONTROL equ 0x604
POWER      equ 0x100                    ; the power button's bit in status and enable
BUFFER     equ 0x8000                   ; the sector that goes to the disks
COM1       equ 0x3f8

        bits 16
        org 0x7c00

        jmp 0:entry
entry:  cli
        xor bx, bx
        mov ds, bx
        mov es, bx
        mov ss, bx
        mov sp, 0x7c00
        mov word [8 * 4], timer         ; IRQ 0 is ours from here on
        mov [8 * 4 + 2], bx
        mov al, 0x34                    ; PIT channel 0, a pulse every `divisor` periods
        out 0x43, al
        mov al, [divisor]
        out 0x40, al
        mov al, [divisor + 1]
        out 0x40, al
        mov dx, PM_ENABLE               ; without this bit the button leaves no trace in the status
        mov ax, POWER
        out dx, ax
        mov al, [0x475]                 ; how many hard disks the BIOS found
        cmp al, [disks]
        jae .known
        mov [disks], al
.known: mov eax, [begin]
        mov [next], eax

idle:   sti
        hlt
        xor cx, cx
        xchg cl, [due]
        jcxz idle
        inc dword [counter]
        mov dx, PM_STATUS
        in ax, dx
        test ah, POWER >> 8
        jnz off

; -- memory: one word in each of so many pages holds pass ^ address
        mov ecx, [fill_pages]           ; the first pass has a rate and an end of its own
        mov ebp, [fill_end]
        cmp dword [pass], 0
        je .rate
        mov ecx, [pages]
        mov ebp, [end]
.rate:  test ecx, ecx
        jz disk
        cli                             ; give FS a limit of 4 GiB; the BIOS takes it away at each disk call
        lgdt [gdt_register]
        mov eax, cr0
        inc ax
        mov cr0, eax
        mov bx, 8
        mov fs, bx
        dec ax
        mov cr0, eax
        xor bx, bx
        mov fs, bx
        sti
        mov edi, [next]
.page:  mov eax, [pass]
        mov edx, eax
        inc edx
        xor edx, edi                    ; what this pass writes
        test eax, eax
        jz .write                       ; nothing was written before the first pass
        xor eax, edi
        cmp [fs:edi], eax
        je .write
        mov al, 'X'
        push dx
        call put
        pop dx
.write: mov [fs:edi], edx
        add edi, 4096
        cmp edi, ebp
        jb .more
        mov edi, [begin]
        inc dword [pass]
        jmp .left                       ; a pass never ends in the middle of a tick's work
.more:  dec ecx
        jnz .page
.left:  mov [next], edi

; -- disks
disk:   mov ecx, [span]
        jecxz print
        mov eax, [counter]
        mov dword [BUFFER], 'TICK'
        mov [BUFFER + 4], eax
        xor edx, edx
        div ecx
        inc edx
        mov [packet.lba], edx
        mov dl, 0x80
        mov cl, [disks]
.next:  pusha
        mov byte [packet + 2], 1        ; a write that fails leaves 0 there
        mov ax, 0x4300                  ; extended write
        mov si, packet
        int 0x13
        popa
        jnc .good
        mov al, 'E'
        push dx
        call put
        pop dx
.good:  inc dx
        dec cl
        jnz .next

print:  mov eax, [counter]
        mov ebx, 10
        xor cx, cx
.digit: xor edx, edx
        div ebx
        push dx
        inc cx
        test eax, eax
        jnz .digit
.put:   pop ax
        add al, '0'
        call put
        loop .put
        mov al, 10
        call put
        jmp idle

off:    mov si, farewell
        mov cx, 4
.put:   lodsb
        call put
        loop .put
        mov dx, PM_CONTROL              ; S5 is type 0 on the PIIX4
        mov ax, 0x2000
        out dx, ax
        cli
        hlt

put:    mov ah, al                      ; prints AL; DX and AX are lost
        mov dx, COM1 + 5
.busy:  in al, dx
        test al, 0x20
        jz .busy
        mov al, ah
        mov dx, COM1
        out dx, al
        ret

timer:  push ax
        mov byte [cs:due], 1            ; ticks that come too fast are one tick
        mov al, 0x20
        out 0x20, al
        pop ax
        iret

farewell:       db "OFF", 10
gdt_register:   dw 15
                dd gdt
gdt:            dq 0
                dw 0xffff, 0, 0x9200, 0x00cf
packet:         dw 16, 1, BUFFER, 0
.lba:           dd 0, 0
counter:        dd 0
pass:           dd 0
next:           dd 0
due:            db 0

; -- parameters, at fixed places: ticker.py writes them
        times 0x1e0 - ($ - $$) db 0
divisor:        dw 11932                ; 0x1e0  ticks per second are 1193182 / divisor
span:           dd 2000                 ; 0x1e2  sectors written in turn from LBA 1 on; 0: none
begin:          dd 0x200000             ; 0x1e6  memory from here
fill_end:       dd 0x1000000            ; 0x1ea  to here is written once, in the first pass,
fill_pages:     dd 0                    ; 0x1ee  so many pages at each tick;
end:            dd 0x400000             ; 0x1f2  then from begin to here, again and again,
pages:          dd 0                    ; 0x1f6  so many pages at each tick
disks:          db 2                    ; 0x1fa  at most so many disks
        times 510 - ($ - $$) db 0
        dw 0xaa55
